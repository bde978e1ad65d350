//! A crowd: processes of this program with descriptors and connections, that do nothing else.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::pinning;

/// Descriptors of one of the crowd that are neither files nor connections of its own: input, output, error.
const STANDARD: usize = 3;

/// Ends with its input, when it is dropped or the bench ends.
#[derive(Debug)]
pub(super) struct Crowd {
    members: Vec<Child>,
    accepted: Vec<TcpStream>,
}

impl Crowd {
    /// Starts `processes`, each with `descriptors`, and together with `connections` to `listener`.
    pub(super) fn gather(
        listener: &TcpListener,
        processes: usize,
        descriptors: usize,
        connections: usize,
    ) -> Result<Self> {
        ensure!(processes > 0 && connections >= processes, "each process needs a connection");
        pinning::raise_descriptors(connections as u64 + processes as u64 * 2 + 1_000)?;
        let address = listener.local_addr()?;
        let mut crowd = Self { members: Vec::new(), accepted: Vec::new() };
        for index in 0..processes {
            let own = connections / processes + usize::from(index < connections % processes);
            let files = descriptors.saturating_sub(own + STANDARD);
            let program = std::env::current_exe().context("/proc/self/exe")?;
            let mut child = Command::new(program)
                .args(["crowd", "--to", &address.to_string()])
                .args(["--connections", &own.to_string(), "--files", &files.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start one of the crowd")?;
            let said = child.stdout.take().context("its output")?;
            crowd.members.push(child);
            for _ in 0..own {
                crowd.accepted.push(listener.accept().context("one of the crowd did not connect")?.0);
            }
            let mut line = String::new();
            BufReader::new(said).read_line(&mut line)?;
            ensure!(line.trim() == "ready", "one of the crowd ended at once");
        }
        Ok(crowd)
    }

    /// The ends of one of its connections, the client's first: of a process in the middle.
    pub(super) fn connection(&self) -> (SocketAddr, SocketAddr) {
        let of = |stream: &TcpStream| Some((stream.peer_addr().ok()?, stream.local_addr().ok()?));
        self.accepted
            .get(self.accepted.len() / 2)
            .and_then(of)
            .unwrap_or_else(|| unreachable!("it is not empty"))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for member in &mut self.members {
            drop(member.stdin.take());
        }
        for member in &mut self.members {
            let _ = member.wait();
        }
    }
}

/// One of the crowd: holds what it is told to until its input ends.
pub(crate) fn play(to: SocketAddr, connections: usize, files: usize) -> Result<()> {
    let connections: std::io::Result<Vec<_>> = (0..connections).map(|_| TcpStream::connect(to)).collect();
    let files: std::io::Result<Vec<_>> = (0..files).map(|_| File::open("/dev/null")).collect();
    let held = (connections?, files?);
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(held);
    Ok(())
}

/// Has a process that never asked before make one CONNECT.
pub(super) fn visit_by_a_new_process(proxy: SocketAddr, target: &str) -> Result<()> {
    let program = std::env::current_exe().context("/proc/self/exe")?;
    let status = Command::new(program)
        .args(["visit", "--proxy-address", &proxy.to_string(), "--target", target])
        .stdin(Stdio::null())
        .status()
        .context("cannot start a client")?;
    ensure!(status.success(), "a new process was not served: {status}");
    Ok(())
}
