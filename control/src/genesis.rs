//! The first start: a cluster, its first administrator, its usual policy. Each step is taken only
//! if the log lacks it, so that a start that was cut short is finished by the next.

use crate::access::{self, NoRandomness};
use crate::domain::State;
use crate::service::{Context, Done, Service, Unanswered};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use voute_schemas::commit::Origin;
use voute_schemas::event::{FailoverMode, PolicyRules, Role};
use voute_schemas::ids::*;
use voute_schemas::proof::Verifier;
use voute_schemas::{Command, Hash, Name};

/// File of the first administrator's token, in the data directory.
pub const TOKEN_FILE: &str = "admin.token";
/// Name of the policy that moves groups by themselves.
pub const AUTOMATIC: &str = "automatic";
/// Commits that a complete genesis makes.
const GENESIS_COMMITS: u64 = 3;

/// Why a cluster could not be founded.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// The token's file.
    #[error(
        "the administrator's token cannot be written to {path}: {source}; check the data directory"
    )]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] Unanswered),
    /// It was refused.
    #[error("the cluster could not be founded: {message}")]
    Refused {
        /// Why.
        message: String,
    },
    /// Random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Founds what the log lacks, as it was read at the start; where the token is, if this process made
/// one.
pub(crate) async fn found(
    service: &Service,
    read: &State,
    data: &Path,
    name: &Name,
    log_site: Verifier,
) -> Result<Option<PathBuf>, GenesisError> {
    let has_administrator = |state: &State| {
        state.credentials().any(|(_, credential)| credential.role == Role::Administrator)
    };
    // In a cluster nothing of this needs doing, and what is published may come only later.
    let is_young = read.position().sequence.0 < GENESIS_COMMITS;
    if !is_young && has_administrator(read) {
        return Ok(None);
    }
    let correlation = CorrelationId::generate();
    if read.cluster().is_none() {
        let cluster = ClusterId::generate();
        let command = Command::CreateCluster { cluster, name: name.clone(), log_site };
        commit(service, command, correlation).await?;
    }
    let path = data.join(TOKEN_FILE);
    let mut made = None;
    if !has_administrator(&service.state()) {
        let verifier = token(&path)?;
        let name = Name::new("admin").expect("this is a name");
        let credential = CredentialId::generate();
        let role = Role::Administrator;
        let command = Command::IssueCredential { credential, name, role, verifier };
        commit(service, command, correlation).await?;
        made = Some(path);
    }
    let automatic = Name::new(AUTOMATIC).expect("this is a name");
    let state = service.state();
    let is_young = state.position().sequence.0 < GENESIS_COMMITS;
    if is_young && state.policy_named(&automatic).is_none() {
        let rules = PolicyRules {
            mode: FailoverMode::Automatic,
            hold_down_ms: 0,
            preferred_site: None,
            failback: false,
        };
        let policy = PolicyId::generate();
        commit(service, Command::CreatePolicy { policy, name: automatic, rules }, correlation)
            .await?;
    }
    Ok(made)
}

async fn commit(
    service: &Service,
    command: Command,
    correlation: CorrelationId,
) -> Result<(), GenesisError> {
    let context = Context { correlation, ..Context::system(Origin::Genesis, "first start") };
    match service.submit(command, context).await? {
        // Another control process of the same log was faster: that is as good.
        Done::Committed { .. } | Done::Repeated { .. } => Ok(()),
        Done::Refused { code, .. } if code == "cluster-exists" || code == "duplicate-name" => {
            Ok(())
        }
        Done::Refused { message, .. } => Err(GenesisError::Refused { message }),
        Done::Escalated { .. } => Err(GenesisError::Refused { message: "strange answer".into() }),
    }
}

/// The verifier of the token in the file; makes both if the file is not there.
fn token(path: &Path) -> Result<Hash, GenesisError> {
    let failed = |source| GenesisError::TokenFile { path: path.to_owned(), source };
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(Hash::of(text.trim().as_bytes())),
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let fresh = access::fresh("vta_")?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    writeln!(file, "{}", fresh.text).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(fresh.verifier)
}
