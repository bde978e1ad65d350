//! Putting a policy in force while connections are open, and telling of it: by SIGHUP, by a changed file, by the API.
//!
//! Everything is compiled before anything is swapped; what cannot be used changes nothing and is told with every error.

use std::collections::HashMap;
use std::sync::Arc;

use crate::appliance::Appliance;
use crate::diagnostic::Diagnostics;
use crate::event::journal::Urgency;
use crate::event::{Event, Kind};
use crate::policy::{Loaded, Policy, PolicyFile};
use crate::sandbox::Sandbox;

/// What a binary's path resolves to in a sandbox' view, as [`Policy::compile_with`] wants it.
pub type Links<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Puts policies in force that have been read without an error. One that several sandboxes share is compiled once;
/// `links` must be right for all of them.
pub fn put(appliance: &Appliance, wanted: &[(Arc<Sandbox>, Arc<PolicyFile>)], links: Links<'_>) {
    let mut compiled: HashMap<*const PolicyFile, Arc<Policy>> = HashMap::new();
    let policies = wanted.iter().map(|(sandbox, file)| {
        let policy =
            compiled.entry(Arc::as_ptr(file)).or_insert_with(|| Arc::new(Policy::compile_with(file, links)));
        (Arc::clone(sandbox), Arc::clone(policy))
    });
    appliance.put_policies(policies.collect());
    for (sandbox, file) in wanted {
        loaded(sandbox, &file.source);
    }
}

/// Puts one sandbox under what was read for it, or leaves it under what it is under. `source` names what was read.
pub fn replace(
    appliance: &Appliance,
    sandbox: &Arc<Sandbox>,
    source: &str,
    read: Result<Loaded, Diagnostics>,
    links: Links<'_>,
) -> Result<Loaded, Diagnostics> {
    match read {
        Ok(found) => {
            let policy = Arc::new(Policy::compile_with(&found.file, links));
            appliance.put_policies(vec![(Arc::clone(sandbox), policy)]);
            loaded(sandbox, &found.file.source);
            Ok(found)
        }
        Err(errors) => {
            rejected(sandbox, source, &errors);
            Err(errors)
        }
    }
}

/// Tells that a policy is in force.
pub fn loaded(sandbox: &Sandbox, source: &str) {
    report(sandbox, Kind::PolicyLoaded, source);
}

/// Tells that what was read cannot be used, with every error; what was in force stays.
pub fn rejected(sandbox: &Sandbox, source: &str, errors: &Diagnostics) {
    report(sandbox, Kind::PolicyRejected, &format!("{source} cannot be used\n{errors}"));
}

fn report(sandbox: &Sandbox, kind: Kind, detail: &str) {
    let mut event = Event::now(kind);
    event.sandbox = Some(sandbox.name());
    event.detail = Some(detail.trim_end());
    sandbox.reporter().report(&event, Urgency::Now);
}
