//! `sluice demo`: the tour.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use sluice_netns::Spec;

use super::exec::{self, check_machine};
use super::exit;
use crate::appliance::{Appliance, Plan};
use crate::demo::internet::Internet;
use crate::demo::{POLICY, tour};
use crate::diagnostic::Diagnostics;
use crate::event::journal::Target;
use crate::event::{Words, ledger};
use crate::limits::SandboxLimits;
use crate::made::{self, Made, Workload};
use crate::policy::{self, Policy, PolicyFile};
use crate::signals::Signals;

/// Runs the tour; with `inside`, the part of it that runs in the sandbox.
pub fn run(inside: bool) -> u8 {
    if inside {
        return told(tour::run().map(|()| exit::OK));
    }
    if let Err(code) = check_machine() {
        return code;
    }
    told(demonstrate())
}

fn told(outcome: anyhow::Result<u8>) -> u8 {
    outcome.unwrap_or_else(|error| {
        eprintln!("sluice: {error:#}");
        exit::INTERNAL
    })
}
