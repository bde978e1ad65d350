//! `sluice events` and `sluice denials`: what the daemon has seen.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use clap::Args;
use hyper::Method;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::daemon::{DaemonArgs, table};
use super::exec::{Failure, told};
use super::exit;
use super::sandbox::NOTHING;
use crate::admin::wire::{DenialLine, Denials};
use crate::event::ledger::printable;

/// `sluice events`.
#[derive(Args, Debug)]
#[allow(missing_docs)] // a comment on a flattened field would become the command's help
pub struct EventsArgs {
    /// Go on with those that come, until interrupted.
    #[arg(long, short)]
    pub follow: bool,
    /// Of this sandbox only.
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,
    /// Of this kind only, such as bypass.detected.
    #[arg(long, value_name = "KIND")]
    pub event: Option<String>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// `sluice denials`.
#[derive(Args, Debug)]
#[allow(missing_docs)] // as above
pub struct DenialsArgs {
    /// Of this sandbox only.
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,
    /// Print the policy that would allow them, and nothing wider.
    #[arg(long)]
    pub suggest: bool,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// Prints events, one JSON object a line.
pub fn run_events(args: &EventsArgs) -> u8 {
    told(events(args))
}

/// Prints what was refused, folded.
pub fn run_denials(args: &DenialsArgs) -> u8 {
    told(denials(args))
}

fn events(args: &EventsArgs) -> Result<u8, Failure> {
    let query = query(&[
        ("follow", args.follow.then_some("true")),
        ("sandbox", args.sandbox.as_deref()),
        ("event", args.event.as_deref()),
    ]);
    let client = args.daemon.client()?;
    if args.follow {
        leave_with_the_reader();
    }
    let mut out = std::io::stdout();
    let mut reader_left = false;
    // Piece by piece: a reader of a pipe wants each line when it comes. One that went away is no failure.
    client.stream(Method::GET, &format!("/v1/events{query}"), NOTHING, |lines| {
        out.write_all(lines).and_then(|()| out.flush()).inspect_err(|_| reader_left = true)
    })?;
    if args.follow && !reader_left {
        return Err(Failure::new(exit::UNAVAILABLE, anyhow::anyhow!("the daemon has ended")));
    }
    Ok(exit::OK)
}

/// Ends this process when nobody reads its output any more, which would else be noticed at the next event: `| head -1`.
fn leave_with_the_reader() {
    let watch = || {
        let out = std::io::stdout();
        loop {
            let mut fds = [PollFd::new(out.as_fd(), PollFlags::empty())];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            if fds[0].revents().is_some_and(|found| found.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
            {
                std::process::exit(exit::OK.into());
            }
        }
    };
    // Without it, the next event does.
    let _ = std::thread::Builder::new().name("reader".into()).spawn(watch);
}

/// A query string of what is given.
fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        let Some(value) = value else { continue };
        text.push(if text.is_empty() { '?' } else { '&' });
        let _ = write!(text, "{name}=");
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => text.push(byte.into()),
                other => {
                    let _ = write!(text, "%{other:02X}");
                }
            }
        }
    }
    text
}

fn denials(args: &DenialsArgs) -> Result<u8, Failure> {
    let query = query(&[("sandbox", args.sandbox.as_deref()), ("suggest", args.suggest.then_some("true"))]);
    let found: Denials = args.daemon.client()?.call(Method::GET, &format!("/v1/denials{query}"), NOTHING)?;
    args.daemon.answer(&found, |found| if args.suggest { suggested(found) } else { listed(found) })
}

fn listed(found: &Denials) -> String {
    if found.denials.is_empty() {
        return "nothing was refused since the daemon started".into();
    }
    let mut table = table(&["sandbox", "", "how", "destination", "program", "why", "times", "last"]);
    for one in &found.denials {
        table.add_row(row(one));
    }
    let mut text = table.to_string();
    text.push('\n');
    let mut hints: Vec<&str> = Vec::new();
    for hint in found.denials.iter().filter_map(|one| one.hint.as_deref()) {
        if !hints.contains(&hint) {
            hints.push(hint);
            let _ = writeln!(text, "hint: {}", printable(hint));
        }
    }
    for (sandbox, count) in &found.left_out {
        let _ = writeln!(text, "{sandbox}: {count} earlier attempts are no longer told apart");
    }
    text
}

fn row(one: &DenialLine) -> [String; 8] {
    let stage = if one.stage == "bypassed" { "BYPASS" } else { &one.stage };
    let program = match (one.program.is_empty(), one.pid) {
        (true, 0) => "?".into(),
        (true, pid) => format!("pid {pid}"),
        (false, 0) => printable(&one.program),
        (false, pid) => format!("{} ({pid})", printable(&one.program)),
    };
    [
        one.sandbox.clone(),
        stage.to_owned(),
        printable(&one.how),
        printable(&one.destination),
        program,
        match one.allowed_via_proxy {
            Some(true) => format!("{}: allowed through the proxy; the program did not use it", one.reason),
            _ => one.reason.clone(),
        },
        one.count.to_string(),
        one.last.get(..19).unwrap_or(&one.last).replace('T', " "),
    ]
}

fn suggested(found: &Denials) -> String {
    match &found.suggestions[..] {
        [] => "# nothing was refused since the daemon started".into(),
        [only] => only.policy.clone(),
        several => {
            let mut text = String::new();
            for (number, one) in several.iter().enumerate() {
                let separator = if number == 0 { "" } else { "---\n" };
                let _ = write!(text, "{separator}# sandbox {}\n{}", one.sandbox, one.policy);
            }
            text
        }
    }
}
