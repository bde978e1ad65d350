//! What was refused, folded, and the policy that would allow it.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Daemon, Member, Refusal, view};
use crate::admin::wire::{DenialLine, Denials, Suggested};
use crate::destination::{Authority, Destination};
use crate::event::ledger::{Key, Line, Stage};
use crate::policy::{self, Denial, Observed, Way};

impl Daemon {
    /// What was refused to one sandbox, or to all; with what would allow it, if that is wanted.
    pub fn denials(&self, sandbox: Option<&str>, suggest: bool) -> Result<Denials, Refusal> {
        let members = match sandbox {
            Some(name) => vec![self.member(name)?],
            None => self.members(),
        };
        let mut found = Denials::default();
        for member in &members {
            let (lines, beyond) = self.appliance.reporter().ledger().lines_of(member.name());
            let refused: Vec<_> = lines.into_iter().filter(|(key, _)| stage(key.stage).is_some()).collect();
            if beyond > 0 {
                found.left_out.insert(member.name().to_owned(), beyond);
            }
            if suggest && !refused.is_empty() {
                found.suggestions.push(suggested(member, &refused));
            }
            found.denials.extend(refused.iter().map(|(key, line)| told(key, line)));
        }
        Ok(found)
    }
}

/// The word for those that are refusals.
fn stage(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Denied => Some("denied"),
        Stage::Audited => Some("audited"),
        Stage::Bypassed => Some("bypassed"),
        Stage::Allowed | Stage::Failed => None,
    }
}

fn told(key: &Key, line: &Line) -> DenialLine {
    DenialLine {
        sandbox: key.sandbox.to_string(),
        stage: stage(key.stage).unwrap_or_default().to_owned(),
        how: key.how.to_string(),
        destination: key.destination.to_string(),
        program: key.program.to_string(),
        reason: key.why.to_string(),
        paths: line.paths.iter().map(ToString::to_string).collect(),
        count: line.count,
        first: view::text(line.first),
        last: view::text(line.last),
        allowed_via_proxy: line.allowed_via_proxy,
        pid: line.pid,
        hint: line.hint.as_deref().map(str::to_owned),
    }
}

/// One thing that was asked for, owned.
struct Asked<'a> {
    destination: Destination,
    exe: Option<PathBuf>,
    request: Option<(&'a str, &'a str)>,
    reason: &'a str,
    way: Way,
}

fn suggested(member: &Member, refused: &[(Key, Line)]) -> Suggested {
    let asked: Vec<Asked<'_>> = refused.iter().flat_map(|(key, line)| asked(key, line)).collect();
    let denials: Vec<Denial<'_>> = asked
        .iter()
        .map(|one| Denial {
            asked: Observed { destination: &one.destination, exe: one.exe.as_deref(), request: one.request },
            reason: one.reason,
            way: one.way,
        })
        .collect();
    let current = Arc::clone(&member.policy().file);
    let mut suggestion = policy::suggest(&denials, &current);
    for (key, _) in refused.iter().filter(|(_, line)| line.paths_beyond) {
        if let Ok(authority) = Authority::parse(key.destination.as_bytes()) {
            suggestion
                .leave_out(&authority.to_destination(0), "more different paths were asked for than are kept");
        }
    }
    Suggested { sandbox: member.name().to_owned(), policy: suggestion.policy() }
}

/// A line with several paths asked for several things.
fn asked<'a>(key: &'a Key, line: &'a Line) -> Vec<Asked<'a>> {
    let Ok(authority) = Authority::parse(key.destination.as_bytes()) else { return Vec::new() };
    let one = |request| Asked {
        destination: authority.to_destination(0),
        exe: (!key.program.is_empty()).then(|| PathBuf::from(&*key.program)),
        request,
        reason: &key.why,
        way: match (key.stage, &*key.how) {
            (Stage::Bypassed, "tcp") => Way::DirectTcp,
            (Stage::Bypassed, _) => Way::Direct,
            _ => Way::Proxy,
        },
    };
    if key.stage == Stage::Bypassed || &*key.how == "CONNECT" {
        return vec![one(None)];
    }
    line.paths.iter().map(|path| one(Some((&*key.how, &**path)))).collect()
}
