//! The JetStream engine under the suite, on one server and on three; then what only servers can do:
//! be too old, hold unsafe settings, lose a branch, fill up.

use crate::one_at_a_time;
use crate::proxy::{Lose, Proxy};
use crate::sample::{chain, position};
use crate::servers::{self, Servers, Sync};
use crate::suite::{Rig, append, conforms, read_all};
use async_nats::jetstream::Context;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use voute_events::jetstream::OpenError;
use voute_events::{
    AppendError, JetStreamLog, JetStreamOptions, Log, Position, ReadError, Topic, VerifiedReader,
};
use voute_schemas::Commit;

struct ServerRig {
    servers: Servers,
    logs: u32,
    crashes: usize,
}

impl ServerRig {
    async fn start(count: usize) -> Option<Self> {
        let servers = Servers::start(&servers::find()?, count, Sync::Always).await;
        Some(ServerRig { servers, logs: 0, crashes: 0 })
    }

    fn options(&self) -> JetStreamOptions {
        self.servers.options(&format!("log-{}", self.logs))
    }

    async fn administration(&self) -> Context {
        let servers = self.options().servers;
        let addresses: Vec<async_nats::ServerAddr> =
            servers.iter().map(|server| server.parse().unwrap()).collect();
        async_nats::jetstream::new(async_nats::connect(addresses).await.unwrap())
    }

    async fn stream_leader(&self) -> usize {
        let stream = self.administration().await.get_stream(self.options().stream).await.unwrap();
        let cluster = stream.cached_info().cluster.as_ref().expect("a cluster");
        Servers::index_of(cluster.leader.as_ref().expect("a leader"))
    }
}

impl Rig for ServerRig {
    type Log = JetStreamLog;

    async fn fresh(&mut self) -> JetStreamLog {
        self.logs += 1;
        self.another().await
    }

    async fn another(&self) -> JetStreamLog {
        JetStreamLog::open(self.options()).await.unwrap()
    }

    async fn append_losing_answer(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        let proxy = Proxy::start(self.servers.address(0)).await;
        let log = open_through(&proxy, self.options()).await;
        proxy.lose(Lose::Answer);
        let answered = append(&log, expected, commits).await;
        assert!(proxy.has_lost(), "no answer was lost");
        answered
    }

    /// On a cluster by turns: a follower or the leader, then everything.
    async fn crash_and_restart(&mut self, log: JetStreamLog) -> JetStreamLog {
        self.crashes += 1;
        if self.servers.count() == 3 && self.crashes % 2 == 1 {
            let leader = self.stream_leader().await;
            self.servers.kill(leader);
            // The two others elect another while this log goes on reading.
            log.read(voute_schemas::Sequence(1), 1).await.unwrap();
            self.servers.start_one(leader);
        } else {
            for index in 0..self.servers.count() {
                self.servers.kill(index);
            }
            for index in 0..self.servers.count() {
                self.servers.start_one(index);
            }
        }
        self.servers.ready().await;
        log
    }
}

/// A client that knows no way around the proxy.
async fn open_through(proxy: &Proxy, mut options: JetStreamOptions) -> JetStreamLog {
    options.servers = vec![format!("nats://{}", proxy.address())];
    JetStreamLog::open(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_server_conforms() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    conforms(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_three_conforms() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(3).await else { return };
    conforms(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_lost_on_its_way_is_stored_once() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    rig.fresh().await;
    let proxy = Proxy::start(rig.servers.address(0)).await;
    let log = open_through(&proxy, rig.options()).await;
    proxy.lose(Lose::Publication);
    let commits = chain(Position::ZERO, 2);
    let head = append(&log, Position::ZERO, &commits).await.unwrap();
    assert!(proxy.has_lost());
    assert_eq!(head, position(&commits[1]));
    assert_eq!(read_all(log).await, commits);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_the_server_forgot_the_message_id_returns_the_first_position() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    let log = rig.fresh().await;
    let first = chain(Position::ZERO, 2);
    let head = append(&log, Position::ZERO, &first).await.unwrap();
    let context = rig.administration().await;
    let mut stream = context.get_stream(rig.options().stream).await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.duplicate_window = Duration::from_millis(100);
    context.update_stream(config).await.unwrap();
    // Ids are read back from the stream at a start, those of the window only.
    let log = rig.crash_and_restart(log).await;
    assert_eq!(append(&log, Position::ZERO, &first).await.unwrap(), head);
    let later = chain(head, 1);
    append(&log, head, &later).await.unwrap();
    assert_eq!(append(&log, Position::ZERO, &first).await.unwrap(), head);
    assert_eq!(read_all(log).await, [first, later].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_replaced_by_another_branch_refuses_writers_and_stops_readers_of_the_old() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    let old_log = rig.fresh().await;
    let old = chain(Position::ZERO, 6);
    let mut head = Position::ZERO;
    for commit in &old {
        head = append(&old_log, head, std::slice::from_ref(commit)).await.unwrap();
    }
    let mut reader = VerifiedReader::new(old_log.clone(), Position::ZERO);
    assert_eq!(reader.next_batch(100).await.unwrap().len(), 6);
    // An administrator deletes the stream, which regrows to the same length from the third on.
    rig.administration().await.delete_stream(rig.options().stream).await.unwrap();
    let new_log = rig.another().await;
    // As many messages as before, so that numbers alone tell nothing.
    let mut before = Position::ZERO;
    for commit in &old[..2] {
        before = append(&new_log, before, std::slice::from_ref(commit)).await.unwrap();
    }
    for _ in 0..4 {
        before = append(&new_log, before, &chain(before, 1)).await.unwrap();
    }
    let refused = append(&old_log, head, &chain(head, 1)).await;
    assert!(matches!(refused, Err(AppendError::Refused { .. })), "{refused:?}");
    assert!(matches!(reader.next_batch(1).await, Err(ReadError::Damaged { .. })));
    assert_eq!(read_all(new_log).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_lost_its_end_refuses_writers_and_stops_readers() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    let log = rig.fresh().await;
    let commits = chain(Position::ZERO, 4);
    append(&log, Position::ZERO, &commits[..2]).await.unwrap();
    let head = append(&log, position(&commits[1]), &commits[2..]).await.unwrap();
    let mut reader = VerifiedReader::new(log.clone(), Position::ZERO);
    assert_eq!(reader.next_batch(100).await.unwrap().len(), 4);
    rig.administration().await.delete_stream(rig.options().stream).await.unwrap();
    let shortened = rig.another().await;
    append(&shortened, Position::ZERO, &commits[..2]).await.unwrap();
    let refused = append(&log, head, &chain(head, 1)).await;
    assert!(matches!(refused, Err(AppendError::Refused { .. })), "{refused:?}");
    assert!(matches!(reader.next_batch(1).await, Err(ReadError::Damaged { .. })));
    assert_eq!(read_all(shortened).await, commits[..2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_no_append_is_damage_not_the_end() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    let log = rig.fresh().await;
    let mut head = Position::ZERO;
    for _ in 0..5 {
        head = append(&log, head, &chain(head, 1)).await.unwrap();
    }
    let context = rig.administration().await;
    let subject = format!("voute.log.{}", rig.options().stream);
    context.publish(subject, "noise".into()).await.unwrap().await.unwrap();
    let mut reader = VerifiedReader::new(rig.another().await, Position::ZERO);
    let mut read = 0;
    let error = loop {
        match reader.next_batch(1).await {
            Ok(batch) if batch.is_empty() => panic!("noise was taken for the end"),
            Ok(batch) => read += batch.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReadError::Damaged { .. }) && read == 5, "{read} {error}");
    let refused = append(&log, head, &chain(head, 1)).await;
    assert!(matches!(refused, Err(AppendError::Refused { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_missing_in_the_middle_is_damage_not_the_end() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    let log = rig.fresh().await;
    let context = rig.administration().await;
    let mut stream = context.get_stream(rig.options().stream).await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    // The log's own settings deny it, so an administrator makes the stream anew without.
    context.delete_stream(&config.name).await.unwrap();
    config.deny_delete = false;
    let stream = context.create_stream(config).await.unwrap();
    let mut head = Position::ZERO;
    for _ in 0..5 {
        head = append(&log, head, &chain(head, 1)).await.unwrap();
    }
    stream.delete_message(3).await.unwrap();
    for batch in [1, 100] {
        let mut reader = VerifiedReader::new(log.clone(), Position::ZERO);
        let mut read = 0;
        let error = loop {
            match reader.next_batch(batch).await {
                Ok(batch) if batch.is_empty() => panic!("a gap was taken for the end"),
                Ok(batch) => read += batch.len(),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ReadError::Damaged { .. }) && read <= 2, "{read} {error}");
    }
    let Err(OpenError::Settings { wrong, .. }) = JetStreamLog::open(rig.options()).await else {
        panic!("a stream with a gap was taken");
    };
    assert!(wrong.iter().any(|fault| fault.contains("deleted")), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsafe_settings_are_named_and_refused() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    rig.logs = 1;
    let missing = JetStreamLog::open(JetStreamOptions { create: false, ..rig.options() }).await;
    assert!(matches!(missing, Err(OpenError::NoStream { .. })));
    rig.fresh().await;
    let context = rig.administration().await;
    let mut stream = context.get_stream(rig.options().stream).await.unwrap();
    let mut config = stream.info().await.unwrap().config.clone();
    config.allow_direct = true;
    config.max_age = Duration::from_secs(86_400);
    config.discard = async_nats::jetstream::stream::DiscardPolicy::Old;
    context.update_stream(config).await.unwrap();
    let Err(OpenError::Settings { wrong, .. }) = JetStreamLog::open(rig.options()).await else {
        panic!("unsafe settings were taken");
    };
    for part in ["allow_direct", "max_age", "discard"] {
        assert!(wrong.iter().any(|fault| fault.contains(part)), "{part}: {wrong:?}");
    }
    assert_eq!(wrong.len(), 3, "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_stream_says_so_and_stays_whole() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    rig.logs = 1;
    let options = JetStreamOptions { stream_bytes_max: Some(10_000), ..rig.options() };
    let log = JetStreamLog::open(options).await.unwrap();
    let mut head = Position::ZERO;
    let full = loop {
        match append(&log, head, &chain(head, 3)).await {
            Ok(position) => head = position,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, AppendError::Full { .. }), "{full:?}");
    assert_eq!(read_all(log).await.len() as u64, head.sequence.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_servers_that_flush_before_they_acknowledge_arm_failover() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    let log = rig.fresh().await;
    assert!(log.safety().is_armed(), "{:?}", log.safety());
    let unchecked = JetStreamOptions { monitoring: Vec::new(), ..rig.options() };
    assert!(!JetStreamLog::open(unchecked).await.unwrap().safety().is_armed());
    let lazy = Servers::start(&servers::find().unwrap(), 1, Sync::Default).await;
    let log = JetStreamLog::open(lazy.options("log")).await.unwrap();
    let safety = log.check_safety().await;
    assert!(safety.reasons.len() == 1 && safety.reasons[0].contains("sync_interval"), "{safety:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_lost_with_its_site_leaves_failover_armed() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(3).await else { return };
    let log = rig.fresh().await;
    assert!(log.safety().is_armed(), "{:?}", log.safety());
    rig.servers.kill(0);
    let safety = log.check_safety().await;
    assert!(safety.is_armed() && safety.unasked.len() == 1, "{safety:?}");
    // Nor is it needed by a process that starts after the loss.
    let options = JetStreamOptions { create: false, ..rig.options() };
    let safety = JetStreamLog::open(options).await.unwrap().safety().clone();
    assert!(safety.is_armed() && safety.unasked.len() == 1, "{safety:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_hear_each_other_beside_the_log_and_not_themselves() {
    let _turn = one_at_a_time().await;
    let Some(mut rig) = ServerRig::start(1).await else { return };
    let (one, other) = (rig.fresh().await.exchange(), rig.another().await.exchange());
    let (mut to_one, mut to_other) = (one.listen(Topic::Watch), other.listen(Topic::Watch));
    let administration = rig.administration().await;
    let subject = format!("voute.exchange.{}.watch", rig.options().stream);
    // What comes from one process arrives in the order in which it was said; so the first that counts
    // shows that nothing before it did. Said again until the ears are open.
    let hear = async { tokio::join!(to_one.next(), to_other.next()) };
    let say = async {
        loop {
            one.say(Topic::Watch, b"from one".to_vec()).await;
            administration.client().publish(subject.clone(), "short".into()).await.unwrap();
            other.say(Topic::Watch, b"from the other".to_vec()).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let heard = tokio::select! {
        heard = tokio::time::timeout(Duration::from_secs(20), hear) => heard.expect("they hear"),
        () = say => unreachable!("it speaks on"),
    };
    assert_eq!(heard, (b"from the other".to_vec(), b"from one".to_vec()));
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let info = r#"{"server_id":"x","server_name":"old","version":"2.14.6","go":"go1.24","host":"127.0.0.1","port":1,"headers":true,"max_payload":1048576,"proto":1,"jetstream":true}"#;
        stream.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap() > 0 {
            if line.starts_with("PING") {
                stream.write_all(b"PONG\r\n").await.unwrap();
            }
            line.clear();
        }
    });
    let opened = JetStreamLog::open(JetStreamOptions::new(address.to_string(), "log")).await;
    let Err(error) = opened else { panic!("an old server was taken") };
    assert!(matches!(&error, OpenError::TooOld { found, .. } if found == "2.14.6"));
    assert!(error.to_string().contains("2.15.1"), "{error}");
    server.abort();
}

#[tokio::test]
async fn a_silent_address_is_an_error_that_names_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let opened = JetStreamLog::open(JetStreamOptions::new(&*address, "log")).await;
    let Err(error) = opened else { panic!("nobody answered") };
    assert!(error.to_string().contains(&address), "{error}");
}
