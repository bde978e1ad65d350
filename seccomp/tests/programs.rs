//! Real programs under full confinement: filter, witness, pid namespace, no privileges.
//!
//! Node's os.networkInterfaces() is the field report that began this: a filter that refused AF_NETLINK
//! ended it before its first line.
#![allow(clippy::unwrap_used, reason = "also in the functions the tests share")]

mod sandbox;

use sandbox::{Network, command, run_with};
use sluice_seccomp::{ExitStatus, Launch, Namespaces, User, Witness, note_ring};
use std::os::fd::AsFd;

/// Runs `words` as root and as a plain user, in a fresh private /tmp, and gives the output of both.
fn confined(words: &[&str]) -> [String; 2] {
    [None, Some(User::new(65_534, 65_534))].map(|user| {
        let network = Network::new();
        let mut launch = command(words);
        launch.user = user;
        confined_in(&network, launch)
    })
}

fn confined_in<'a>(network: &'a Network, mut launch: Launch<'a>) -> String {
    launch.netns = Some(network.fd.as_fd());
    launch.witness = true;
    launch.namespaces = Namespaces { pids: true, private_tmp: true };
    launch.cwd = Some("/tmp".into());
    launch.env.push(("HOME".into(), "/tmp".into()));
    let mut witness = None;
    let outcome = run_with(&launch, |child| {
        let serve = Witness::new(child.take_witness().unwrap(), child.pid(), note_ring().unwrap().0, vec![]);
        witness = Some(std::thread::spawn(move || serve.run(None)));
    });
    witness.unwrap().join().unwrap().unwrap();
    assert_eq!(outcome.status, ExitStatus::Exited(0), "{:?}: {outcome:#?}", launch.args);
    outcome.stdout
}

fn python(script: &str) -> [String; 2] {
    // The interpreter itself: a shim in a directory of root's cannot be reached by a plain user.
    confined(&["/usr/bin/python3", "-c", script])
}

#[test]
fn node_lists_its_interfaces() {
    for output in confined(&["/usr/bin/node", "-p", "Object.keys(os.networkInterfaces()).join()"]) {
        assert_eq!(output, "lo\n");
    }
}

#[test]
fn node_serves_and_fetches() {
    let script = "
        const http = require('http');
        const server = http.createServer((q, r) => r.end('hello ' + q.url)).listen(0, '10.200.0.1', async () => {
            const url = `http://10.200.0.1:${server.address().port}/`;
            console.log(await (await fetch(url + 'x')).text());
            http.get(url + 'y', r => r.on('data', d => { console.log(String(d)); process.exit(0); }));
        });";
    for output in confined(&["/usr/bin/node", "-e", script]) {
        assert_eq!(output, "hello /x\nhello /y\n");
    }
}

#[test]
fn node_starts_threads_and_processes() {
    let script = "
        const { Worker } = require('worker_threads');
        const { execFileSync, spawnSync } = require('child_process');
        console.log(execFileSync('/bin/echo', ['child']).toString().trim(), spawnSync('sh', ['-c', 'exit 7']).status);
        new Worker(\"require('worker_threads').parentPort.postMessage('thread')\", { eval: true }).on('message', console.log);";
    for output in confined(&["/usr/bin/node", "-e", script]) {
        assert_eq!(output, "child 7\nthread\n");
    }
}

#[test]
fn python_asyncio_socketpairs_and_multiprocessing_work() {
    let script = "
import asyncio, multiprocessing, socket
async def main():
    async def hello(r, w): w.write(b'hello'); await w.drain(); w.close()
    server = await asyncio.start_server(hello, '10.200.0.1', 0)
    r, w = await asyncio.open_connection(*server.sockets[0].getsockname())
    print((await r.read()).decode())
    p = await asyncio.create_subprocess_exec('echo', 'child', stdout=asyncio.subprocess.PIPE)
    print((await p.communicate())[0].decode().strip())
asyncio.run(main())
a, b = socket.socketpair(); a.send(b'pair'); print(b.recv(9).decode())
def square(x): return x * x
with multiprocessing.Pool(4) as pool: print(sum(pool.map(square, range(10))))
print(socket.if_nameindex()[0][1])";
    for output in python(script) {
        assert_eq!(output, "hello\nchild\npair\n285\nlo\n");
    }
}

#[test]
fn python_seeks_the_open_ways_of_escape_in_vain() {
    // What a program without the filter's help would try from a script.
    let script = "
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, *args):
    result = getattr(libc, name)(*args)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else 'DONE'
print(attempt('unshare', 0x10000000), attempt('unshare', 0x40000000), attempt('setns', os.open('/proc/self/ns/net', 0), 0),
      attempt('mount', b'none', b'/tmp', b'tmpfs', 0, None), attempt('syscall', 425, 8, 0))
for family, kind, protocol in [(socket.AF_PACKET, socket.SOCK_RAW, 0), (socket.AF_INET, socket.SOCK_RAW, 1), (40, 1, 0), (16, 3, 12)]:
    try: socket.socket(family, kind, protocol); print('DONE')
    except OSError as e: print(errno.errorcode[e.errno])";
    for output in python(script) {
        assert_eq!(
            output,
            "EPERM EPERM EPERM EPERM ENOSYS\nEAFNOSUPPORT\nEPERM\nEAFNOSUPPORT\nEPROTONOSUPPORT\n"
        );
    }
}

#[test]
fn curl_and_git_reach_a_server_inside() {
    let script = "
set -e
mkdir site && cd site && git init -q . && git config user.email a@b && git config user.name n
echo content > file && git add . && git commit -qm one && git update-server-info && cd ..
/usr/bin/python3 -m http.server --bind 10.200.0.1 8080 > /dev/null 2>&1 & server=$!
until curl -sf http://10.200.0.1:8080/site/file; do :; done
git clone -q http://10.200.0.1:8080/site/.git copy && cat copy/file
kill $server";
    for output in confined(&["bash", "-c", script]) {
        assert_eq!(output, "content\ncontent\n");
    }
}

#[test]
fn gcc_and_make_build_and_the_result_runs() {
    let script = "
set -e
printf '#include <stdio.h>\\nint main(void) { puts(\"built\"); }\\n' > a.c
printf 'a: a.c\\n\\tgcc -O1 -pipe -o a a.c\\n' > Makefile
make -s -j2 && ./a";
    for output in confined(&["bash", "-c", script]) {
        assert_eq!(output, "built\n");
    }
}

#[test]
fn psutil_sees_the_sandbox() {
    let script = "
import psutil, os
print(psutil.Process().pid == os.getpid(), [p.info['pid'] for p in psutil.process_iter(['pid'])][:2], list(psutil.net_if_addrs()))
psutil.virtual_memory(); psutil.cpu_times(); psutil.disk_usage('/'); psutil.net_connections(); psutil.Process().cpu_percent()";
    for output in python(script) {
        assert_eq!(output, "True [1, 2] ['lo']\n");
    }
}

#[test]
fn cargo_builds_and_the_result_runs() {
    // The toolchain is the tests' own; cargo's home is the sandbox's.
    let (cargo, rustc) = (env!("CARGO"), tool("rustc"));
    let script = format!(
        "
set -e
export CARGO_HOME=/tmp/cargo RUSTC={rustc}
{cargo} new -q --bin hello --vcs none && cd hello
echo 'fn main() {{ println!(\"built\"); std::thread::spawn(|| ()).join().unwrap(); }}' > src/main.rs
echo 'fn main() {{ println!(\"cargo::rustc-cfg=scripted\"); }}' > build.rs
{cargo} build -q --offline -j2 && target/debug/hello"
    );
    // A plain user cannot enter root's home, where rustup keeps toolchains.
    let network = Network::new();
    assert_eq!(confined_in(&network, command(&["bash", "-c", &script])), "built\n");
}

/// A tool of the toolchain that builds the tests.
fn tool(name: &str) -> String {
    let beside = std::path::Path::new(env!("CARGO")).with_file_name(name);
    assert!(beside.exists(), "{} is not beside cargo", beside.display());
    beside.display().to_string()
}

#[test]
fn go_builds_serves_and_fetches() {
    let source = "package main
import (\"fmt\"; \"io\"; \"net\"; \"net/http\"; \"os/exec\")
func main() {
  l, err := net.Listen(\"tcp\", \"10.200.0.1:0\"); if err != nil { panic(err) }
  go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, \"hello \", r.URL.Path) }))
  r, err := http.Get(\"http://\" + l.Addr().String() + \"/x\"); if err != nil { panic(err) }
  b, _ := io.ReadAll(r.Body); fmt.Println(string(b))
  o, err := exec.Command(\"echo\", \"child\").Output(); if err != nil { panic(err) }
  fmt.Print(string(o))
  i, err := net.Interfaces(); if err != nil { panic(err) }
  fmt.Println(i[0].Name)
}";
    let script = format!(
        "export GOCACHE=/tmp/go GOFLAGS=-mod=mod GOTOOLCHAIN=local; cat > a.go <<'EOF'\n{source}\nEOF\ngo run a.go"
    );
    // Building the standard library twice would show nothing more.
    let network = Network::new();
    let mut launch = command(&["bash", "-c", &script]);
    launch.user = Some(User::new(65_534, 65_534));
    assert_eq!(confined_in(&network, launch), "hello /x\nchild\nlo\n");
}

#[test]
#[cfg_attr(not(has_chromium), ignore = "SKIPPED: chromium is not installed, and apt could not install it")]
fn chromium_renders_a_page_without_its_own_sandbox() {
    // Its own sandbox makes user namespaces, which no workload may: `--no-sandbox` is needed inside.
    let script = "
echo '<p id=a></p><script>document.getElementById(\"a\").textContent = 6 * 7</script>' > page.html
timeout 100 chromium --headless --no-sandbox --disable-gpu --user-data-dir=/tmp/profile --dump-dom \
  file:///tmp/page.html 2> errors || { cat errors; exit 1; }";
    let network = Network::new();
    let mut launch = command(&["bash", "-c", script]);
    launch.user = Some(User::new(65_534, 65_534));
    let page = confined_in(&network, launch);
    assert!(page.contains("<p id=\"a\">42</p>"), "{page}");
}

#[test]
fn ip_and_bash_jobs_work() {
    for output in confined(&["ip", "-brief", "address"]) {
        assert!(output.contains("10.200.0.1/32"), "{output}");
    }
    let script = "set -m; sleep 1000 & kill -STOP %1; kill %1; kill -CONT %1; wait %1; echo $?; (exit 3) & wait $!; echo $?; trap 'echo int' INT; kill -INT $$";
    for output in confined(&["bash", "-c", script]) {
        assert_eq!(output, "143\n3\nint\n");
    }
}

#[test]
fn a_debugger_works_inside() {
    let script = "strace -qq -e trace=execve -o trace /bin/true && cut -d, -f1 trace";
    for output in confined(&["bash", "-c", script]) {
        assert_eq!(output, "execve(\"/bin/true\"\n");
    }
}

#[test]
fn a_root_workload_changes_owners_and_users() {
    let network = Network::new();
    let script = "touch f && chown 1234:1234 f && stat -c %u:%g f && setpriv --reuid=1234 --regid=1234 --clear-groups id -u";
    assert_eq!(confined_in(&network, command(&["bash", "-c", script])), "1234:1234\n1234\n");
}

#[test]
fn java_runs_threads_and_sockets() {
    let source = "
import java.net.*; import java.util.*;
public class A { public static void main(String[] a) throws Exception {
  ServerSocket l = new ServerSocket(0, 5, InetAddress.getByName(\"10.200.0.1\"));
  Thread t = new Thread(() -> { try (Socket s = l.accept()) { s.getOutputStream().write('!'); } catch (Exception e) { throw new RuntimeException(e); } });
  t.start();
  try (Socket s = new Socket(\"10.200.0.1\", l.getLocalPort())) { System.out.println((char) s.getInputStream().read()); }
  t.join();
  System.out.println(Collections.list(NetworkInterface.getNetworkInterfaces()).get(0).getName());
} }";
    for output in
        confined(&["bash", "-c", &format!("cat > A.java <<'EOF'\n{source}\nEOF\njava -Xmx64m A.java")])
    {
        assert_eq!(output, "!\nlo\n");
    }
}
