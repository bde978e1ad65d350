//! Runs a command confined, as `sluice exec` does, with no network of its own: for trying programs out.
//!
//! `cargo run -p sluice-seccomp --example confine -- CMD [ARG…]`, as root. The exit code is the command's.

use sluice_seccomp::{Launch, Terminal, launch};

fn main() {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: confine CMD [ARG…]");
        std::process::exit(64);
    };
    let mut wanted = Launch::new(program);
    wanted.args = words.collect();
    wanted.terminal = Terminal::Foreground;
    let ended = match launch(&wanted) {
        Ok(child) => {
            eprint!("{}", child.enforcement());
            child.wait()
        }
        Err(error) => {
            eprintln!("confine: {error}");
            std::process::exit(error.exit_code());
        }
    };
    match ended {
        Ok(status) => std::process::exit(status.code()),
        Err(error) => {
            eprintln!("confine: waiting for the workload failed: {error}");
            std::process::exit(70);
        }
    }
}
