//! How the daemon starts, fails to, and ends: what it took over is never its to end.

mod e2e;

use std::net::TcpListener;

use e2e::{Container, Daemon, PUBLIC_ADDRESS, Scene};
use nix::sys::signal::Signal;

#[test]
fn a_start_that_fails_half_way_ends_nothing_that_it_took_over() {
    let scene = Scene::new();
    let container = Container::start();
    let mut daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "work"]).ended_with(0);
    let mut workload = daemon.within_command("work", &["sleep", "1000"]).spawn().expect("start");
    daemon.ask(&["sandbox", "attach", "box", "--pid", &container.pid()]).ended_with(0);
    let before = daemon.ask_json(&["sandbox", "show", "work"]);
    daemon.end(Signal::SIGKILL);

    // Found only once all sandboxes were taken up: what was attached cannot be made.
    daemon.configure("sandboxes:\n  - { name: box, policy: deny }\n");
    let failed = daemon.fail_to_start().ended_with(70);
    assert!(failed.stderr.contains("sandbox box was kept as another kind"), "{}", failed.stderr);
    // Found before any is.
    let port = TcpListener::bind("127.0.0.1:0").expect("bind");
    daemon.configure(&format!("metrics: {}\n", port.local_addr().expect("address")));
    let failed = daemon.fail_to_start().ended_with(70);
    assert!(failed.stderr.contains("for metrics"), "{}", failed.stderr);

    assert!(workload.try_wait().expect("wait").is_none(), "what ran inside was ended");
    let direct = daemon.within("work", &["curl", "-sS", "-m", "20", &format!("http://{PUBLIC_ADDRESS}/")]);
    assert_eq!(direct.code, 7, "{}", direct.stderr);
    daemon.configure("");
    daemon.restart();
    let after = daemon.ask_json(&["sandbox", "show", "work"]);
    assert_eq!((&before["namespace"], &before["since"]), (&after["namespace"], &after["since"]));
    assert_eq!(after["processes"].as_array().map(Vec::len), Some(1), "{after}");
    assert_eq!(daemon.ask_json(&["sandbox", "show", "box"])["kind"], "attached");
    workload.kill().expect("kill");
    workload.wait().expect("wait");
}
