//! Establishing sandboxes and removing them.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use sluice_netns::{GuardedLink, Kind as NetworkKind, LogLimit, Sandbox as Network, Spec, discard};
use sluice_seccomp::Notes;

use super::order::Order;
use super::state::{self, Noted};
use super::{Claim, Daemon, Member, Refusal};
use crate::admin::wire::{NewSandbox, Origin, PolicyBody, PolicyText};
use crate::config::{IdentityMode, SandboxConfig, Shape};
use crate::event::journal::Urgency;
use crate::event::{Event, Kind};
use crate::identity::{Members, Mode, ProcTables, Resolver, Setup};
use crate::made::{self, MadeError, Share};
use crate::policy::{self, Policy};
use crate::reload;
use crate::sandbox::Sandbox;
use crate::trusted;
use crate::watch::Watched;

impl Daemon {
    /// Makes, attaches or enrols a sandbox that there is not yet, and serves it.
    pub fn establish(&self, order: Order) -> Result<Arc<Member>, Refusal> {
        self.settle(order, false)
    }

    /// The same for one that an earlier daemon may have kept: then it is taken over as it is.
    pub fn restore(&self, order: Order) -> Result<Arc<Member>, Refusal> {
        self.settle(order, true)
    }

    fn settle(&self, order: Order, take_over: bool) -> Result<Arc<Member>, Refusal> {
        let claim = self.claim(order.name.as_str())?;
        let made = self.guard_link(&order).and_then(|guarded| self.build(order, guarded, take_over));
        match made {
            Ok(member) => {
                let member = Arc::new(member);
                claim.settle(Arc::clone(&member));
                self.enrol();
                report(member.sandbox(), Kind::SandboxStarted, None);
                reload::loaded(member.sandbox(), &member.policy().label);
                Ok(member)
            }
            Err(refusal) => {
                // What may have been fenced before, by an earlier daemon, stays so while it cannot be served.
                if !take_over {
                    self.unguard(&claim.name);
                }
                Err(refusal)
            }
        }
    }

    fn build(&self, order: Order, guarded: Option<GuardedLink>, take_over: bool) -> Result<Member, Refusal> {
        let Some((network, is_new)) = self.network(&order, take_over)? else {
            let sandbox = self.external(&order)?;
            self.watch_link(&sandbox, guarded.as_ref())?;
            return Ok(Member::new(order, sandbox, None, guarded, None));
        };
        let notes = matches!(order.shape, Shape::Made).then(|| Arc::new(Notes::default()));
        let served = self.serve_network(&order, &network, notes.clone(), guarded.as_ref());
        let built = served.and_then(|sandbox| {
            match order.to_request().map(|request| note(network.netns_path(), &order, request)) {
                None | Some(Ok(())) => Ok(sandbox),
                Some(Err(refusal)) => {
                    made::end_service(&self.appliance, &sandbox, network.inode());
                    Err(refusal)
                }
            }
        });
        match built {
            Ok(sandbox) => Ok(Member::new(order, sandbox, Some(network), guarded, notes)),
            Err(refusal) => {
                // What was there before stays as it was; what is new goes.
                let undone = if is_new { network.destroy() } else { network.release() };
                undone.unwrap_or_else(|error| tracing::error!(%error, "a half-made sandbox is left"));
                Err(refusal)
            }
        }
    }

    /// The network of a sandbox that has one, and whether it is new.
    fn network(&self, order: &Order, take_over: bool) -> Result<Option<(Network, bool)>, Refusal> {
        let spec = Spec {
            state_dir: self.settings.state_dir.clone(),
            proxy_address: self.settings.proxy_address,
            kept: true,
            log_limit: LogLimit { into: self.appliance.bypass_source().log_into(), ..LogLimit::default() },
            ..Spec::new(order.name.clone())
        };
        let (kind, target) = match &order.shape {
            Shape::External { .. } => return Ok(None),
            Shape::Made => (NetworkKind::Made, None),
            Shape::Attached { to, .. } => (NetworkKind::Attached, Some(to.target())),
        };
        if take_over && let Some((network, difference)) = Network::adopt(&spec)? {
            if network.kind() != kind {
                network.release()?;
                return Err(Refusal::Exists(format!(
                    "sandbox {0} was kept as another kind of sandbox than is asked for now; end it with \
                     `sluice sandbox rm {0}`",
                    order.name
                )));
            }
            if let Some(difference) = difference {
                self.tell_tampered(order.name.as_str(), &difference);
            }
            return Ok(Some((network, false)));
        }
        let network = match target {
            None => Network::create(&spec)?,
            Some(target) => Network::attach(&spec, &target)?,
        };
        Ok(Some((network, true)))
    }

    /// Has what the host's fence drops of an external sandbox told.
    fn watch_link(&self, sandbox: &Arc<Sandbox>, guarded: Option<&GuardedLink>) -> Result<(), Refusal> {
        let Some(guarded) = guarded else { return Ok(()) };
        let watched = Watched {
            sandbox: Arc::clone(sandbox),
            token: None,
            host_token: Some(guarded.token.value()),
            notes: None,
            counters: None,
            nflog: None,
            proxy_address: self.settings.listen.unwrap_or(self.settings.proxy_address),
        };
        Ok(self.appliance.watch(watched).map_err(MadeError::Watch)?)
    }

    fn serve_network(
        &self,
        order: &Order,
        network: &Network,
        notes: Option<Arc<Notes>>,
        guarded: Option<&GuardedLink>,
    ) -> Result<Arc<Sandbox>, Refusal> {
        let view_of = match &order.shape {
            Shape::Attached { .. } => first_process(network),
            _ => None,
        };
        let share = Share {
            // Another policy may come to judge other names.
            names: None,
            policy: Arc::new(Policy::compile_with(&order.policy, &*links(view_of))),
            limits: order.limits,
            mode: mode(order.identity),
            view_of,
            notes,
            host_token: guarded.map(|guarded| guarded.token.value()),
            listeners: self.settings.listeners_per_sandbox,
        };
        let sandbox = made::serve(&self.appliance, network, share)?;
        self.offer_authority(&sandbox).inspect_err(|_| {
            made::end_service(&self.appliance, &sandbox, network.inode());
        })?;
        Ok(sandbox)
    }

    /// An external sandbox' processes are looked for in this host's own namespace.
    fn external(&self, order: &Order) -> Result<Arc<Sandbox>, Refusal> {
        let resolver = match mode(order.identity) {
            Mode::Off => None,
            mode => {
                let setup = Setup {
                    mode,
                    netns: None,
                    members: Members::Namespace,
                    elsewhere: Arc::clone(self.appliance.elsewhere()),
                    view_of: None,
                    notes: None,
                    trace: if mode == Mode::Process { self.appliance.trace() } else { None },
                    tables: Arc::new(ProcTables::new("/proc")),
                    proc: "/proc".into(),
                };
                Some(Arc::new(Resolver::open(setup).map_err(MadeError::Identity)?))
            }
        };
        let reporter = self.appliance.reporter().clone();
        let name = order.name.as_str();
        let sandbox = Sandbox::new(name, compile(order), order.limits, resolver, reporter);
        let sandbox = Arc::new(self.appliance.intercepted(sandbox, None).map_err(MadeError::Authority)?);
        self.offer_authority(&sandbox)?;
        Ok(sandbox)
    }

    /// The files by which its processes, which somebody else starts, can be made to trust its authority.
    fn offer_authority(&self, sandbox: &Sandbox) -> Result<(), Refusal> {
        let Some(interception) = sandbox.interception() else { return Ok(()) };
        let directory = trusted::host_directory(&self.settings.state_dir, sandbox.name());
        let platform = self.appliance.trust().roots().of_platform();
        let files = trusted::Files::new(interception.authority().certificate(), platform);
        files.write(&directory).map_err(|error| {
            let directory = directory.display();
            Refusal::Failed(format!("the trusted certificates cannot be written to {directory}: {error}"))
        })
    }

    /// Tells the host's listener who is behind which address.
    fn enrol(&self) {
        let _one_at_a_time = self.enrolling.lock().unwrap_or_else(PoisonError::into_inner);
        let external = self.members().into_iter();
        let ranges =
            external.filter_map(|member| Some((member.source()?, Arc::clone(member.sandbox())))).collect();
        self.sources.set(ranges);
    }

    /// Ends what runs in a made sandbox and removes it; gives an attached namespace back as it was; forgets an
    /// external one. `why` is told by the event.
    pub fn remove(&self, name: &str, why: &str) -> Result<(), Refusal> {
        let (claim, member) = match self.claim_living(name) {
            Err(Refusal::NotFound(_)) => return self.discard_kept(name),
            other => other?,
        };
        self.end(&claim, &member, why)
    }

    pub(super) fn end(&self, claim: &Claim<'_>, member: &Member, why: &str) -> Result<(), Refusal> {
        tracing::debug!(sandbox = &*claim.name, why, "removing");
        let removed = if let Some(network) = member.take_network() {
            // First nothing more happens, then the account is closed.
            if let Err(error) = network.end_processes() {
                tracing::warn!(%error, sandbox = &*claim.name, "direct attempts may be missing from the account");
            }
            made::end_service(&self.appliance, member.sandbox(), network.inode());
            network.destroy()
        } else {
            self.enrol();
            self.appliance.forget(member.sandbox());
            if member.guarded().is_some() {
                self.appliance.unwatch(member.sandbox());
            }
            Ok(())
        };
        if member.guarded().is_some()
            && let Err(error) = self.load_host_fence()
        {
            tracing::error!(%error, sandbox = &*claim.name, "its link stays fenced until the host fence can be loaded");
        }
        let _ = std::fs::remove_dir_all(trusted::host_directory(&self.settings.state_dir, &claim.name));
        report(member.sandbox(), Kind::SandboxStopped, Some(why));
        self.appliance.reporter().ledger().forget(member.name());
        Ok(removed?)
    }

    /// Removes a sandbox that was kept but could not be taken over.
    fn discard_kept(&self, name: &str) -> Result<(), Refusal> {
        let unknown = || Refusal::NotFound(name.to_owned());
        let parsed = name.parse().map_err(|_| unknown())?;
        let claim = self.claim(name)?;
        let swept = discard(&self.settings.state_dir, &parsed)?;
        if let Some(swept) = swept {
            swept.outcome?;
        } else if let Some(why) = self.waits_by_configuration(name) {
            return Err(Refusal::Invalid(format!(
                "sandbox {name} of the configuration is not there yet: {why}; to give it up, take it out of the \
                 configuration"
            )));
        } else if !self.forget_waiting(name) {
            return Err(unknown());
        }
        self.forget_waiting(name);
        self.unguard(&claim.name);
        Ok(())
    }

    /// A fence was found other than it was loaded, and was put back.
    pub(super) fn tell_tampered(&self, name: &str, difference: &str) {
        let mut event = Event::now(Kind::FenceViolation);
        event.sandbox = Some(name);
        event.reason = Some("fence_changed");
        event.detail = Some(difference);
        self.appliance.reporter().report(&event, Urgency::Now);
        tracing::warn!(sandbox = name, difference, "a fence had been changed; it was put back");
    }

    /// Puts the policies in force that the configuration has for its sandboxes.
    pub fn put_config_policies(&self, entries: &[SandboxConfig]) {
        let mut wanted = Vec::new();
        for entry in entries {
            let Ok(member) = self.member(&entry.name) else { continue };
            if member.origin() != Origin::Config {
                tracing::warn!(
                    name = member.name(),
                    "the configuration names a sandbox that the admin API made; it stays as it is"
                );
                continue;
            }
            let mut now = member.policy();
            now.label = super::order::label(&entry.policy_source);
            now.file = Arc::clone(&entry.policy);
            now.text = None;
            drop(now);
            let one = (Arc::clone(member.sandbox()), Arc::clone(&entry.policy));
            match member.shape() {
                // Its programs lie in a file system of its own.
                Shape::Attached { .. } => {
                    reload::put(
                        &self.appliance,
                        &[one],
                        &*links(member.with_network(first_process).flatten()),
                    );
                }
                _ => wanted.push(one),
            }
        }
        reload::put(&self.appliance, &wanted, &policy::host_links);
    }

    /// Puts another policy in force; what its author should know comes back. A bad one changes nothing.
    pub fn put_policy(&self, name: &str, body: &PolicyBody) -> Result<Vec<String>, Refusal> {
        let member = self.member(name)?;
        let label = body.policy.label();
        let read = body.policy.load();
        // First noted: what is in force must also be what a restart finds.
        let mut now = member.policy();
        let mut said = Vec::new();
        if let Ok(loaded) = &read {
            super::order::check_identity(member.identity(), &loaded.file)?;
            said.extend(loaded.notes.sorted().iter().map(ToString::to_string));
            if member.origin() == Origin::Config {
                said.push(
                    "the configuration names a policy too, which holds again after a reload or restart"
                        .into(),
                );
            } else {
                self.note_policy(&member, &body.policy)?;
            }
            now.label = label.into();
            now.file = Arc::new(loaded.file.clone());
            now.text = Some(body.policy.clone());
        }
        let view_of = match member.shape() {
            Shape::Attached { .. } => member.with_network(first_process).flatten(),
            _ => None,
        };
        reload::replace(&self.appliance, member.sandbox(), label, read, &*links(view_of))
            .map_err(Refusal::Policy)?;
        Ok(said)
    }

    fn note_policy(&self, member: &Member, policy: &PolicyText) -> Result<(), Refusal> {
        let directory = state::directory(&self.settings.state_dir, member.name());
        let failed = |error| Refusal::Failed(format!("the policy cannot be noted for a restart: {error}"));
        let Some(mut noted) = state::read(&directory).map_err(failed)? else { return Ok(()) };
        noted.sandbox.policy = policy.clone();
        state::write(&directory, &noted).map_err(failed)
    }
}

fn note(netns: &Path, order: &Order, sandbox: NewSandbox) -> Result<(), Refusal> {
    let directory = netns.parent().unwrap_or(netns);
    let noted = Noted { since_us: order.since.unix_micros(), sandbox };
    state::write(directory, &noted).map_err(|error| {
        Refusal::Failed(format!("the sandbox cannot be noted in {}: {error}", directory.display()))
    })
}

/// The process whose file system gives an attached sandbox' paths their meaning: the one that was there first.
fn first_process(network: &Network) -> Option<u32> {
    network.processes().ok()?.into_iter().min()
}

/// What a binary's path resolves to, as [`Policy::compile_with`] wants it.
type Links = Box<dyn Fn(&str) -> Option<String>>;

/// In the view of process `pid`, or of the host.
fn links(pid: Option<u32>) -> Links {
    match pid.map(|pid| policy::links_in(Path::new(&format!("/proc/{pid}/root")))) {
        Some(Ok(links)) => Box::new(links),
        Some(Err(error)) => {
            tracing::warn!(pid, %error, "links of an attached sandbox' programs are not followed");
            Box::new(|_| None)
        }
        None => Box::new(policy::host_links),
    }
}

fn compile(order: &Order) -> Arc<Policy> {
    Arc::new(Policy::compile_with(&order.policy, &policy::host_links))
}

fn mode(identity: IdentityMode) -> Mode {
    match identity {
        IdentityMode::Process => Mode::Process,
        IdentityMode::Uid => Mode::Uid,
        IdentityMode::Off => Mode::Off,
    }
}

fn report(sandbox: &Sandbox, kind: Kind, detail: Option<&str>) {
    let mut event = Event::now(kind);
    event.sandbox = Some(sandbox.name());
    event.detail = detail;
    sandbox.reporter().report(&event, Urgency::Now);
}
