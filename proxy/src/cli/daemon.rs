//! What every command that talks to the daemon shares: where it is, and how its answers and refusals are told.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::exec::Failure;
use super::{check, exit};
use crate::admin::client::{Client, ClientError};
use crate::config::{self, Config};

/// Columns where there is no terminal to measure.
const COLUMNS: u16 = 140;

/// Where the daemon is, and how to answer.
#[derive(Args, Clone, Debug)]
pub struct DaemonArgs {
    /// The daemon's socket [default: /run/sluice/admin.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The daemon's configuration, to find its socket.
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    pub config: Option<PathBuf>,
    /// Answer in JSON.
    #[arg(long)]
    pub json: bool,
}

impl DaemonArgs {
    /// The daemon these arguments name.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let path = match (&self.socket, &self.config) {
            (Some(path), _) => path.clone(),
            (None, Some(file)) => {
                let loaded = config::load(file).map_err(|findings| {
                    check::print(&findings);
                    Failure::new(exit::CONFIG, anyhow!("the configuration {} cannot be used", file.display()))
                })?;
                loaded.config.admin_socket
            }
            (None, None) => Config::default().admin_socket,
        };
        Client::new(&path).map_err(|error| Failure::new(exit::INTERNAL, error))
    }

    /// Prints an answer: as JSON, or as `text` has it.
    pub(super) fn answer<T: Serialize>(
        &self,
        answer: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<u8, Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(answer).map_err(|error| Failure::new(exit::INTERNAL, error))?
        } else {
            text(answer)
        };
        say(&text);
        Ok(exit::OK)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::NotRunning { .. } | ClientError::NotPermitted(_) => exit::UNAVAILABLE,
            ClientError::Refused(failed) => match &*failed.error {
                "bad_policy" | "bad_config" => exit::CONFIG,
                "failed" => exit::INTERNAL,
                "unavailable" => exit::UNAVAILABLE,
                _ => exit::USAGE,
            },
            ClientError::Broken { .. } => exit::INTERNAL,
        };
        Self::new(code, error)
    }
}

/// A table or a sentence; nothing where there is none.
pub(super) fn say(text: &str) {
    let text = text.trim_end();
    if !text.is_empty() {
        super::say(text);
    }
}

/// What the daemon has to say beyond an answer.
pub(super) fn note(notes: &[String]) {
    for note in notes {
        eprintln!("sluice: {note}");
    }
}

/// A table without lines, as wide as the terminal.
pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.set_width(COLUMNS);
    }
    if !head.is_empty() {
        table.set_header(head.iter().map(|head| (*head).to_owned()));
    }
    table
}
