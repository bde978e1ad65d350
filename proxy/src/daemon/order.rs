//! What a sandbox is to be like, wherever that was written.

use std::sync::Arc;

use sluice_netns::{LinkName, SandboxName};

use super::Refusal;
use crate::admin::wire::{NewSandbox, Origin, PolicyText};
use crate::config::{IdentityMode, SandboxConfig, Shape};
use crate::diagnostic::Diagnostics;
use crate::event::Time;
use crate::limits::SandboxLimits;
use crate::policy::{Loaded, PolicyFile, Source};

/// A sandbox to be established.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its name.
    pub name: SandboxName,
    /// What it is made of.
    pub shape: Shape,
    /// Its policy, loaded.
    pub policy: Arc<PolicyFile>,
    /// Where the policy came from, to be shown.
    pub policy_label: Arc<str>,
    /// The policy as it was sent, to be noted for the next daemon; none for one that the configuration names.
    pub policy_text: Option<PolicyText>,
    /// How the asking process is found.
    pub identity: IdentityMode,
    /// What it may use.
    pub limits: SandboxLimits,
    /// Who asked for it.
    pub origin: Origin,
    /// When it was asked for first.
    pub since: Time,
}

impl Order {
    /// As the configuration has it.
    pub fn from_config(entry: &SandboxConfig) -> Result<Self, Refusal> {
        Ok(Self {
            name: entry.name.parse()?,
            shape: entry.shape.clone(),
            policy: Arc::clone(&entry.policy),
            policy_label: label(&entry.policy_source),
            policy_text: None,
            identity: entry.identity,
            limits: entry.limits,
            origin: Origin::Config,
            since: Time::now(),
        })
    }

    /// As the API asked for it, with what its author should know about the policy.
    pub fn from_request(request: &NewSandbox, since: Time) -> Result<(Self, Diagnostics), Refusal> {
        let name: SandboxName = request.name.parse()?;
        let link: Option<LinkName> = request.link.as_deref().map(str::parse).transpose()?;
        let shape = match (&request.attach, link) {
            (Some(to), link) => Shape::Attached { to: to.clone(), link },
            (None, None) => Shape::Made,
            (None, Some(link)) => {
                return Err(Refusal::Invalid(format!(
                    "a sandbox that Sluice makes has no link that could be {link}; `link` goes with `attach`"
                )));
            }
        };
        let Loaded { file: policy, notes } = request.policy.load().map_err(Refusal::Policy)?;
        check_identity(request.identity, &policy)?;
        let order = Self {
            name,
            shape,
            policy: Arc::new(policy),
            policy_label: request.policy.label().into(),
            policy_text: Some(request.policy.clone()),
            identity: request.identity,
            limits: request.limits,
            origin: Origin::Api,
            since,
        };
        Ok((order, notes))
    }

    /// The request that would ask for it, to be noted; none for one of the configuration, which is its own note.
    pub(super) fn to_request(&self) -> Option<NewSandbox> {
        let (attach, link) = match &self.shape {
            Shape::Made => (None, None),
            Shape::Attached { to, link } => (Some(to.clone()), link.as_ref().map(ToString::to_string)),
            Shape::External { .. } => return None,
        };
        Some(NewSandbox {
            name: self.name.to_string(),
            attach,
            link,
            policy: self.policy_text.clone()?,
            identity: self.identity,
            limits: self.limits,
        })
    }
}

/// What `sandbox ls` calls a policy.
pub(super) fn label(source: &Source) -> Arc<str> {
    match source {
        Source::Open => "open".into(),
        Source::Deny => "deny".into(),
        Source::File(path) => path.to_string_lossy().into(),
    }
}

/// A policy that names binaries needs to know them.
pub(super) fn check_identity(mode: IdentityMode, policy: &PolicyFile) -> Result<(), Refusal> {
    let blind = match mode {
        IdentityMode::Process => return Ok(()),
        IdentityMode::Uid => "uid",
        IdentityMode::Off => "off",
    };
    if policy.names_binaries() {
        return Err(Refusal::Invalid(format!(
            "the policy names binaries, which cannot be known with identity: {blind}; remove the binaries, or use \
             identity: process"
        )));
    }
    Ok(())
}
