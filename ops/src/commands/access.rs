//! Policies, credentials, secrets.

use super::{Session, check_secret_file, item, reference, write_secret};
use crate::cli::OutputFormat;
use crate::cli::nouns::{CredentialVerb, LogSiteVerb, PolicyVerb, RuleArguments, SecretVerb};
use crate::print::line;
use crate::print::table::{print_json, print_table};
use anyhow::{Context, bail};
use std::io::Read;
use std::path::Path;
use voute_control::api::answers::{Changed, CredentialView, LogSiteView, PolicyView, SecretNames};
use voute_control::api::requests::{
    ChangeLogSites, ChangePolicy, CreateCredential, CreatePolicy, PutSecret, Rules,
};

/// More than any CHAP secret, bytes.
const SECRET_BYTES_MAX: u64 = 1_024;

/// Of what was made by an earlier request, whose answer was lost, nobody knows the secret.
pub(super) fn must_show_secret(changed: &Changed, what: &str, remove: &str) -> anyhow::Result<()> {
    if !changed.repeated || changed.secret.is_some() {
        return Ok(());
    }
    let id = changed.created.as_deref().unwrap_or("ID");
    bail!(
        "{what} was made by an earlier request (commit {}), whose answer had its secret; it cannot be shown again\n  If it was lost: `voute {remove} {id}`, then make another.",
        changed.sequence.unwrap_or_default()
    )
}

impl Session<'_> {
    pub(super) fn policy(&self, verb: PolicyVerb) -> anyhow::Result<()> {
        match verb {
            PolicyVerb::Create { name, rules } => {
                let body = CreatePolicy { name: name.clone(), rules: as_rules(rules) };
                let changed = self.client.post("/v1/policies", &body)?;
                self.report(&changed, &format!("policy {name} created"))?;
            }
            PolicyVerb::Change { policy, rules } => {
                let changed = self
                    .client
                    .put(&item("policies", &policy), &ChangePolicy { rules: as_rules(rules) })?;
                self.report(&changed, &format!("policy {policy} changed"))?;
            }
            PolicyVerb::List => self.print_list::<PolicyView>("/v1/policies")?,
            PolicyVerb::Show { policy } => {
                self.print_one::<PolicyView>(&item("policies", &policy))?
            }
            PolicyVerb::Remove { policy } => {
                let changed = self.client.delete(&item("policies", &policy))?;
                self.report(&changed, &format!("policy {policy} removed"))?;
            }
        }
        Ok(())
    }

    pub(super) fn log_site(&self, verb: LogSiteVerb) -> anyhow::Result<()> {
        let (body, force, done) = match verb {
            LogSiteVerb::List => return self.print_list::<LogSiteView>("/v1/log-sites"),
            LogSiteVerb::Add { keys, force } => {
                let done = format!("{} added", names_in(&keys));
                (ChangeLogSites { add: keys, remove: vec![] }, force, done)
            }
            LogSiteVerb::Replace { name, key, force } => {
                let done = format!("{name} replaced by {}", names_in(std::slice::from_ref(&key)));
                (ChangeLogSites { add: vec![key], remove: vec![name] }, force, done)
            }
            LogSiteVerb::Remove { names, force } => {
                let done = format!("log site {} removed", names.join(", "));
                (ChangeLogSites { add: vec![], remove: names }, force, done)
            }
        };
        let query = if force { "?force=true" } else { "" };
        let changed = self.client.post(&format!("/v1/log-sites{query}"), &body)?;
        self.report(&changed, &done)?;
        Ok(())
    }

    pub(super) fn credential(&self, verb: CredentialVerb) -> anyhow::Result<()> {
        match verb {
            CredentialVerb::Issue { name, role, token_out } => {
                check_secret_file(token_out.as_deref())?;
                let body = CreateCredential { name: name.clone(), role: role.into() };
                let mut changed = self.client.post_for_secret("/v1/credentials", &body)?;
                must_show_secret(&changed, &format!("credential {name}"), "credential revoke")?;
                let token = changed.secret.clone().unwrap_or_default();
                if let (Some(file), false) = (&token_out, changed.plan || token.is_empty()) {
                    write_secret(file, &token)?;
                    changed.secret = None;
                }
                let committed = self.report(&changed, &format!("credential {name} issued"))?;
                if committed
                    && changed.secret.is_some()
                    && self.options.output != OutputFormat::Json
                {
                    line(&format!("token  {token}   (shown this once)"));
                }
            }
            CredentialVerb::List => self.print_list::<CredentialView>("/v1/credentials")?,
            CredentialVerb::Revoke { credential } => {
                let changed = self.client.delete(&item("credentials", &credential))?;
                self.report(&changed, &format!("credential {credential} revoked"))?;
            }
        }
        Ok(())
    }

    pub(super) fn secret(&self, verb: SecretVerb) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.client.plans(),
            "secrets are not in the log, so there is nothing to plan; leave out --plan"
        );
        match verb {
            SecretVerb::Put { name, from_file } => {
                let secret = read_secret(from_file.as_deref())?;
                self.client.put_aside(&item("secrets", name.as_str()), &PutSecret { secret })?;
                line(&format!("secret {name} kept"));
            }
            SecretVerb::List => {
                let names: SecretNames = self.client.get("/v1/secrets")?;
                match self.options.output {
                    OutputFormat::Json => print_json(&names)?,
                    OutputFormat::Csv | OutputFormat::Table => {
                        print_table(
                            &["name"],
                            &names.names.into_iter().map(|name| vec![name]).collect::<Vec<_>>(),
                        );
                    }
                }
            }
            SecretVerb::Remove { name } => {
                self.client.delete_aside(&item("secrets", name.as_str()))?;
                line(&format!("secret {name} forgotten"));
            }
        }
        Ok(())
    }
}

/// The names in keys of log sites, for people.
fn names_in(keys: &[String]) -> String {
    let name = |key: &String| key.split('+').next().unwrap_or_default().to_owned();
    format!("log site {}", keys.iter().map(name).collect::<Vec<_>>().join(", "))
}

fn as_rules(arguments: RuleArguments) -> Rules {
    Rules {
        mode: arguments.mode.into(),
        hold_down_ms: u64::try_from(arguments.hold_down.as_millis()).unwrap_or(u64::MAX),
        preferred_site: arguments.preferred_site.as_deref().map(reference),
        failback: arguments.failback,
    }
}

/// One line from a file or standard input.
fn read_secret(file: Option<&Path>) -> anyhow::Result<String> {
    let mut text = String::new();
    // One more than may be: so that what is longer is noticed, not cut.
    match file {
        Some(file) => std::fs::File::open(file)
            .and_then(|opened| opened.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text))
            .with_context(|| {
                format!("cannot read {}; name a file that you may read", file.display())
            })?,
        None => std::io::stdin()
            .take(SECRET_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .context("cannot read the secret from standard input")?,
    };
    one_line(&text)
}

fn one_line(text: &str) -> anyhow::Result<String> {
    let line = text.trim_end_matches(['\r', '\n']);
    if text.len() as u64 > SECRET_BYTES_MAX || line.contains(['\r', '\n']) {
        bail!(
            "a secret is one line of at most {SECRET_BYTES_MAX} bytes; give a file with that alone"
        );
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_one_line_and_never_cut() {
        assert_eq!(one_line("DHHC-1:00:x:\r\n").expect("one line"), "DHHC-1:00:x:");
        assert!(one_line("first line\nsecond\n").is_err());
        assert!(one_line(&"x".repeat(1_025)).is_err());
    }
}
