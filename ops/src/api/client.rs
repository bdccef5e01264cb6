//! HTTP to the control plane: JSON in, JSON out, failures with what to do about them.

use crate::api::token::find_token;
use crate::cli::ApiOptions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use ureq::http::{self, Method, Request};
use voute_control::api::answers::{Changed, Page, Problem};
use voute_control::api::requests::{IDEMPOTENCY_KEY, ORIGIN, REASON};
use voute_schemas::CorrelationId;
use voute_schemas::commit::{IDEMPOTENCY_KEY_MAX, REASON_MAX};

/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: u64 = 512 << 20;
/// Longest time for one request; verifying a long log takes its time.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(300);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How often a request is sent again when its connection broke; safe by the idempotency key.
const ATTEMPTS_MAX: usize = 3;
/// How long one control process has for its answer while another can be asked.
const TRY_TIME_MAX: Duration = Duration::from_secs(5);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody answers.
    #[error(
        "cannot reach the control plane at {api} ({cause})\n  Is `voute control` running there? Name another address with --api or VOUTE_API."
    )]
    Unreachable {
        /// The address.
        api: String,
        /// What happened.
        cause: String,
    },
    /// It refused.
    #[error("{}{}{}", problem.message, hint_line(&problem.hint), recorded_line(problem.sequence))]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        problem: Problem,
    },
    /// The token is missing or unknown.
    #[error(
        "{message}\n  Name the file with your token with --token-file, or put the token into VOUTE_TOKEN. The first start of `voute control` leaves an administrator's token in its data folder, in admin.token."
    )]
    Unauthenticated {
        /// Its words.
        message: String,
    },
    /// The answer is not what the API gives.
    #[error(
        "{api} gave an answer that this version does not understand ({cause})\n  Is it a control process of the same version? `voute --version` tells this one's."
    )]
    Unreadable {
        /// The address.
        api: String,
        /// What was found.
        cause: String,
    },
    /// What was to be sent cannot be.
    #[error("{0}")]
    Unsendable(String),
}

fn hint_line(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("\n  {hint}") }
}

fn recorded_line(sequence: Option<u64>) -> String {
    sequence.map_or_else(String::new, |number| {
        format!("\n  The refusal is commit {number} of the log.")
    })
}

/// The control processes of a cluster, and how to speak to them: one is asked, and the next if it does
/// not answer.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    /// At least one.
    apis: Vec<String>,
    /// Which of them answered last; shared by clones.
    current: Arc<AtomicUsize>,
    token: Option<String>,
    reason: Option<String>,
    idempotency_key: Option<String>,
    plan: bool,
    /// How long one control process has for its answer while another can be asked.
    try_time_max: Duration,
}

impl Client {
    /// As the options of the command line say.
    ///
    /// # Errors
    /// If the token's file cannot be read, or reason or key are too long for the log.
    pub fn from_options(options: &ApiOptions) -> anyhow::Result<Self> {
        let mut client = Client::new(&options.api, find_token(options.token_file.as_deref())?);
        let too_long =
            |text: &Option<String>, limit| text.as_ref().is_some_and(|text| text.len() > limit);
        if too_long(&options.reason, REASON_MAX) {
            anyhow::bail!(
                "--reason is longer than {REASON_MAX} bytes, the most that the log keeps; say it shorter"
            );
        }
        if too_long(&options.idempotency_key, IDEMPOTENCY_KEY_MAX) {
            anyhow::bail!(
                "--idempotency-key is longer than {IDEMPOTENCY_KEY_MAX} bytes; choose a shorter one"
            );
        }
        client.reason.clone_from(&options.reason);
        client.idempotency_key.clone_from(&options.idempotency_key);
        client.plan = options.plan;
        Ok(client)
    }

    /// With an address, or several joined by commas, and a token.
    #[must_use]
    pub fn new(api: &str, token: Option<String>) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIME_MAX))
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("voute/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let addresses = api.split(',').map(|api| api.trim().trim_end_matches('/').to_owned());
        let mut apis: Vec<String> = addresses.filter(|api| !api.is_empty()).collect();
        if apis.is_empty() {
            apis.push(api.to_owned());
        }
        Client {
            agent,
            apis,
            current: Arc::default(),
            token,
            reason: None,
            idempotency_key: None,
            plan: false,
            try_time_max: TRY_TIME_MAX,
        }
    }

    /// The same with another reason for the log.
    #[must_use]
    pub fn because(&self, reason: &str) -> Self {
        Client { reason: Some(reason.to_owned()), ..self.clone() }
    }

    /// The same with one idempotency key for everything that it posts: repeated, it has one effect.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Client { idempotency_key: Some(key.to_owned()), ..self.clone() }
    }

    /// The address that is asked.
    #[must_use]
    pub fn api(&self) -> &str {
        &self.apis[self.current.load(Relaxed) % self.apis.len()]
    }

    /// The next address is asked from here on.
    fn turn_to_next(&self) {
        self.current.fetch_add(1, Relaxed);
    }

    /// Whether changes are only planned.
    #[must_use]
    pub fn plans(&self) -> bool {
        self.plan
    }

    /// Reads something.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.understand(self.get_value(path)?)
    }

    /// Reads something, as it was answered.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn get_value(&self, path: &str) -> Result<Value, ApiError> {
        self.exchange(Method::GET, path, &Value::Null, None)
    }

    /// Reads all pages of a list.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn list(&self, path: &str) -> Result<Vec<Value>, ApiError> {
        self.list_first(path, usize::MAX)
    }

    /// Reads pages of a list until there are `enough` items, or the end.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn list_first(&self, path: &str, enough: usize) -> Result<Vec<Value>, ApiError> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page_path = match &after {
                Some(last) => format!("{path}?after={}", encode(last)),
                None => path.to_owned(),
            };
            let page: Page<Value> = self.get(&page_path)?;
            items.extend(page.items);
            match page.next {
                Some(next) if after.as_ref() != Some(&next) && items.len() < enough => {
                    after = Some(next);
                }
                _ => return Ok(items),
            }
        }
    }

    /// Reads all pages of a list, as what they hold.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn list_of<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ApiError> {
        self.list_first_of(path, usize::MAX)
    }

    /// Reads pages of a list until there are `enough` items, as what they hold.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn list_first_of<T: DeserializeOwned>(
        &self,
        path: &str,
        enough: usize,
    ) -> Result<Vec<T>, ApiError> {
        self.list_first(path, enough)?.into_iter().map(|item| self.understand(item)).collect()
    }

    /// Creates something.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Changed, ApiError> {
        self.change(Method::POST, path, body)
    }

    /// Clients of one control process each, of all that are known.
    #[must_use]
    pub fn each(&self) -> Vec<Client> {
        let alone = |api: &String| Client {
            apis: vec![api.clone()],
            current: Arc::default(),
            ..self.clone()
        };
        self.apis.iter().map(alone).collect()
    }

    /// Reads something that takes its time; the next control process is asked only if one cannot answer.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn get_patiently<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        Client { try_time_max: REQUEST_TIME_MAX, ..self.clone() }.get(path)
    }

    /// Creates something whose secret is in the answer, once: each control process that is asked is waited
    /// for, since a second one could only say that it was done.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn post_for_secret(&self, path: &str, body: &impl Serialize) -> Result<Changed, ApiError> {
        Client { try_time_max: REQUEST_TIME_MAX, ..self.clone() }.post(path, body)
    }

    /// Changes something.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn put(&self, path: &str, body: &impl Serialize) -> Result<Changed, ApiError> {
        self.change(Method::PUT, path, body)
    }

    /// Removes something.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn delete(&self, path: &str) -> Result<Changed, ApiError> {
        self.change(Method::DELETE, path, &Value::Null)
    }

    /// Puts something that is not in the log. It may be put twice.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn put_aside(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        let body = self.encode_body(body)?;
        self.exchange(Method::PUT, path, &body, None).map(|_| ())
    }

    /// Removes something that is not in the log. If the first to be asked did not answer, it may have
    /// done so: then it is no error that it is gone.
    ///
    /// # Errors
    /// [`ApiError`].
    pub fn delete_aside(&self, path: &str) -> Result<(), ApiError> {
        self.exchange(Method::DELETE, path, &Value::Null, None).map(|_| ())
    }

    /// Follows a stream of server-sent events, one call per event's data, until the stream ends or
    /// `each` says to stop. The next control process is asked if one does not begin.
    ///
    /// # Errors
    /// [`ApiError`] if it cannot begin, or breaks.
    pub fn follow(&self, path: &str, mut each: impl FnMut(&str) -> bool) -> Result<(), ApiError> {
        let mut attempt = 1;
        let mut body = loop {
            match self.begin_to_follow(path) {
                Err(error) if attempt < self.apis.len() && self.another_may_answer(&error) => {
                    self.turn_to_next();
                    attempt += 1;
                }
                outcome => break outcome?,
            }
        };
        for line in BufReader::new(body.as_reader()).lines() {
            let line = line.map_err(|error| self.broken(&error))?;
            if let Some(data) = line.strip_prefix("data:")
                && !each(data.trim_start())
            {
                break;
            }
        }
        Ok(())
    }

    fn begin_to_follow(&self, path: &str) -> Result<ureq::Body, ApiError> {
        let request = self.request(&Method::GET, path, None).body(()).map_err(unsendable)?;
        let response = self.agent.run(request).map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if status != 200 {
            return Err(self.refusal(status, &body.read_to_string().unwrap_or_default()));
        }
        Ok(body)
    }

    fn change(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Changed, ApiError> {
        let joiner = if path.contains('?') { '&' } else { '?' };
        let path = if self.plan { format!("{path}{joiner}plan=true") } else { path.to_owned() };
        let key = (!self.plan).then(|| {
            self.idempotency_key.clone().unwrap_or_else(|| CorrelationId::generate().to_string())
        });
        let body = self.encode_body(body)?;
        let answer = self.exchange(method, &path, &body, key.as_deref())?;
        self.understand(answer)
    }

    fn encode_body(&self, body: &impl Serialize) -> Result<Value, ApiError> {
        serde_json::to_value(body).map_err(|error| ApiError::Unsendable(error.to_string()))
    }

    /// One request, repeated while its connection breaks, or its control process cannot answer and
    /// another might. None does it twice: reading and planning do nothing, changes carry a key, and what
    /// is set aside is the same the second time.
    fn exchange(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        key: Option<&str>,
    ) -> Result<Value, ApiError> {
        // Each once with little patience, then again with much.
        let others = self.apis.len() - 1;
        let attempts = ATTEMPTS_MAX + others;
        let mut attempt = 1;
        loop {
            let is_quick = others > 0 && attempt <= self.apis.len() && attempt < attempts;
            let time_max = if is_quick { self.try_time_max } else { REQUEST_TIME_MAX };
            let outcome = self.exchange_once(&method, path, body, key, time_max);
            let error = match outcome {
                Err(error) if attempt < attempts && self.another_may_answer(&error) => error,
                // An earlier attempt has removed it.
                Err(ApiError::Refused { status: 404, .. })
                    if attempt > 1 && method == Method::DELETE && key.is_none() =>
                {
                    return Ok(Value::Null);
                }
                outcome => return outcome,
            };
            if others > 0 {
                tracing::debug!(%error, "the next control process is asked");
                self.turn_to_next();
            }
            attempt += 1;
        }
    }

    fn another_may_answer(&self, error: &ApiError) -> bool {
        match error {
            ApiError::Unreachable { .. } => true,
            ApiError::Refused { status, .. } => *status == 503 && self.apis.len() > 1,
            _ => false,
        }
    }

    fn exchange_once(
        &self,
        method: &Method,
        path: &str,
        body: &Value,
        key: Option<&str>,
        time_max: Duration,
    ) -> Result<Value, ApiError> {
        let builder = self.request(method, path, key);
        let outcome = if body.is_null() {
            let request = builder.body(()).map_err(unsendable)?;
            let request =
                self.agent.configure_request(request).timeout_global(Some(time_max)).build();
            self.agent.run(request)
        } else {
            let request = builder
                .header("content-type", "application/json")
                .body(body.to_string())
                .map_err(unsendable)?;
            let request =
                self.agent.configure_request(request).timeout_global(Some(time_max)).build();
            self.agent.run(request)
        };
        let response = outcome.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let text = response
            .into_body()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(|error| self.unreachable(&error))?;
        if !(200..300).contains(&status) {
            return Err(self.refusal(status, &text));
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| self.unreadable(&error))
    }

    fn request(&self, method: &Method, path: &str, key: Option<&str>) -> http::request::Builder {
        let mut builder = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.api()))
            .header(ORIGIN, "cli");
        if let Some(token) = &self.token {
            builder = builder.header("authorization", format!("Bearer {token}"));
        }
        if let Some(key) = key {
            builder = builder.header(IDEMPOTENCY_KEY, key);
        }
        if let Some(reason) = &self.reason {
            builder = builder.header(REASON, reason.as_bytes());
        }
        builder
    }

    fn understand<T: DeserializeOwned>(&self, value: Value) -> Result<T, ApiError> {
        serde_json::from_value(value).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, error: &serde_json::Error) -> ApiError {
        ApiError::Unreadable { api: self.api().to_owned(), cause: error.to_string() }
    }

    fn unreachable(&self, error: &ureq::Error) -> ApiError {
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => ApiError::Unsendable(format!(
                "{:?} is no address of an API ({error}); write for example {}",
                self.api(),
                crate::cli::API_DEFAULT
            )),
            _ => ApiError::Unreachable { api: self.api().to_owned(), cause: error.to_string() },
        }
    }

    fn broken(&self, error: &std::io::Error) -> ApiError {
        ApiError::Unreachable { api: self.api().to_owned(), cause: error.to_string() }
    }

    fn refusal(&self, status: u16, text: &str) -> ApiError {
        let problem = serde_json::from_str(text).unwrap_or_else(|_| Problem {
            code: format!("http-{status}"),
            message: format!(
                "{} answered with HTTP status {status}: {}",
                self.api(),
                first_characters(text)
            ),
            hint: String::new(),
            sequence: None,
        });
        match status {
            401 => ApiError::Unauthenticated { message: problem.message },
            _ => ApiError::Refused { status, problem },
        }
    }
}

fn unsendable(error: http::Error) -> ApiError {
    ApiError::Unsendable(format!(
        "the request cannot be written ({error}); check --api, --reason and --idempotency-key for characters that HTTP does not carry"
    ))
}

fn first_characters(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

/// One segment of a path, or a value of a query: everything but unreserved characters is
/// percent-encoded (RFC 3986 §2.3).
#[must_use]
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => write!(encoded, "%{byte:02X}").expect("a String takes everything"),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write as _};
    use std::net::TcpListener;

    /// A server that answers each connection in turn with the given bytes and gives back what it got.
    fn server(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let thread = std::thread::spawn(move || {
            answers
                .into_iter()
                .map(|answer| {
                    let (mut socket, _) = listener.accept().expect("a client");
                    let mut got = [0; 4096];
                    let length = socket.read(&mut got).expect("a request");
                    socket.write_all(answer.as_bytes()).expect("the client listens");
                    String::from_utf8_lossy(&got[..length]).into_owned()
                })
                .collect()
        });
        (address, thread)
    }

    fn answer(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    const CREATED: &str = r#"{"plan":false,"sequence":7,"commit":null,"events":[],"created":"x","repeated":false,"warnings":[]}"#;

    #[test]
    fn a_broken_connection_repeats_the_request_with_the_same_key() {
        let (api, thread) = server(vec![String::new(), answer("201 Created", CREATED)]);
        let changed = Client::new(&api, None)
            .post("/v1/sites", &serde_json::json!({"name": "a"}))
            .expect("second attempt");
        assert_eq!(changed.sequence, Some(7));
        let requests = thread.join().expect("server");
        let key = |request: &str| {
            request.lines().find_map(|line| {
                line.to_lowercase().strip_prefix(IDEMPOTENCY_KEY).map(str::to_owned)
            })
        };
        assert!(key(&requests[0]).is_some());
        assert_eq!(key(&requests[0]), key(&requests[1]));
    }

    #[test]
    fn another_control_process_is_asked_when_one_is_gone_or_cannot_answer() {
        let busy = answer("503 Service Unavailable", r#"{"code":"x","message":"m","hint":""}"#);
        let (one, first) = server(vec![busy]);
        let (two, second) =
            server(vec![answer("201 Created", CREATED), answer("200 OK", r#"{"a":1}"#)]);
        let client = Client::new(&format!("http://127.0.0.1:1,{one}/, {two}"), None);
        client.post("/v1/sites", &serde_json::json!({"name": "a"})).expect("the third answers");
        assert_eq!(client.api(), two, "it stays with whom answers");
        client.clone().get_value("/v1/status").expect("still the third");
        let requests = [first.join().expect("server"), second.join().expect("server")].concat();
        assert_eq!(requests.len(), 3);
        let key = |request: &str| {
            request.lines().find(|line| line.contains("dempotency")).map(str::to_owned)
        };
        assert!(key(&requests[0]).is_some());
        assert_eq!(key(&requests[0]), key(&requests[1]), "the same request, once");
    }

    #[test]
    fn an_answer_with_a_secret_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let slow = format!("http://{}", listener.local_addr().expect("bound"));
        let thread = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            let _ = socket.read(&mut [0; 4096]).expect("a request");
            std::thread::sleep(Duration::from_millis(600));
            let created = CREATED.replace("\"plan\"", "\"secret\":\"s\",\"plan\"");
            let _ = socket.write_all(answer("201 Created", &created).as_bytes());
        });
        let (other, _never_asked) = server(vec![]);
        let client = Client::new(&format!("{slow},{other}"), None);
        let client = Client { try_time_max: Duration::from_millis(200), ..client };
        let changed = client.post_for_secret("/v1/nodes", &serde_json::json!({})).expect("waited");
        assert_eq!(changed.secret.as_deref(), Some("s"));
        thread.join().expect("server");
    }

    #[test]
    fn every_verb_turns_to_the_next_address_when_the_first_is_down() {
        let follows = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 8\r\n\r\ndata: 1\n";
        let gone = answer("404 Not Found", r#"{"code":"unknown-secret","message":"m","hint":""}"#);
        let (api, thread) = server(vec![
            answer("200 OK", ""),
            gone.clone(),
            gone,
            answer("200 OK", CREATED),
            follows.to_owned(),
        ]);
        let both = format!("http://127.0.0.1:1,,{api}");
        let fresh = || Client::new(&both, None);
        fresh().put_aside("/v1/secrets/a", &serde_json::json!({})).expect("put");
        fresh().delete_aside("/v1/secrets/a").expect("gone: the first may have done it");
        let alone = Client::new(&api, None).delete_aside("/v1/secrets/a");
        assert!(matches!(alone, Err(ApiError::Refused { status: 404, .. })), "{alone:?}");
        let plans = Client { plan: true, ..fresh() };
        plans.post("/v1/sites", &serde_json::json!({})).expect("a plan");
        let mut heard = Vec::new();
        fresh()
            .follow("/v1/feed", |data| {
                heard.push(data.to_owned());
                true
            })
            .expect("it begins at the second");
        assert_eq!(heard, ["1"]);
        let requests = thread.join().expect("server");
        let verbs: Vec<&str> =
            requests.iter().filter_map(|request| request.split(' ').next()).collect();
        assert_eq!(verbs, ["PUT", "DELETE", "DELETE", "POST", "GET"]);
    }

    #[test]
    fn a_refusal_is_told_with_what_to_do() {
        let (api, thread) = server(vec![answer(
            "409 Conflict",
            r#"{"code":"duplicate-name","message":"site a exists","hint":"Choose.","sequence":9}"#,
        )]);
        let error = Client::new(&api, None).get_value("/v1/sites/a").expect_err("refused");
        assert_eq!(
            error.to_string(),
            "site a exists\n  Choose.\n  The refusal is commit 9 of the log."
        );
        thread.join().expect("server");
    }

    #[test]
    fn an_unknown_token_says_where_tokens_are() {
        let (api, thread) = server(vec![answer("401 Unauthorized", "")]);
        let error =
            Client::new(&api, Some("wrong".into())).get_value("/v1/status").expect_err("refused");
        assert!(error.to_string().contains("admin.token"), "{error}");
        thread.join().expect("server");
    }

    #[test]
    fn an_answer_that_is_no_json_is_an_error_not_a_panic() {
        let (api, thread) = server(vec![answer("200 OK", "hello")]);
        let error = Client::new(&api, None).get_value("/v1/status").expect_err("no JSON");
        assert!(matches!(error, ApiError::Unreadable { .. }), "{error}");
        thread.join().expect("server");
    }

    #[test]
    fn nobody_at_the_address_is_told_with_what_to_do() {
        let error = Client::new("http://127.0.0.1:1", None)
            .get_value("/v1/status")
            .expect_err("port 1 is closed");
        assert!(error.to_string().contains("VOUTE_API"), "{error}");
        let error = Client::new("not a url", None).get_value("/v1/status").expect_err("no URL");
        assert!(matches!(error, ApiError::Unsendable(_)), "{error:?}");
    }

    #[test]
    fn what_a_person_typed_cannot_leave_its_path_segment() {
        assert_eq!(encode("../sites?x=1"), "..%2Fsites%3Fx%3D1");
        assert_eq!(encode("vol-01.a_b"), "vol-01.a_b");
    }
}
