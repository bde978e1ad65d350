//! What Sluice's own threads hold while they serve.

mod e2e;

use e2e::*;
use serde_json::Value;

/// `sluice doctor --json` while `running` runs: what the threads of that process hold.
fn threads_of(scene: &Scene, pid: u32) -> Vec<Value> {
    let doctor = run(scene, &[&*sluice().display().to_string(), "doctor", "--json"]);
    let findings: Vec<Value> = serde_json::from_str(&doctor.text()).expect("JSON");
    let name = format!("threads of exec, pid {pid}");
    let found = findings.iter().find(|finding| finding["name"] == *name).expect(&name);
    assert_eq!(found["ok"], true, "{found:#}");
    found["threads"].as_array().expect("threads").clone()
}

fn thread<'a>(threads: &'a [Value], name: &str) -> &'a Value {
    threads.iter().find(|thread| thread["name"] == name).unwrap_or_else(|| panic!("no {name}: {threads:#?}"))
}

#[test]
fn each_thread_holds_what_it_needs_and_doctor_shows_it() {
    let scene = Scene::new();
    let running = scene.exec().start(&["sh", "-c", "echo up; sleep 1000"]);
    running.hear("up");
    let threads = threads_of(&scene, running.pid());
    let held = |name: &str| -> Vec<String> {
        let capabilities = thread(&threads, name)["capabilities"].as_array().expect("a list");
        capabilities.iter().map(|one| one.as_str().expect("a name").to_owned()).collect()
    };
    let naming = ["DAC_READ_SEARCH", "SYS_PTRACE"];
    for name in ["bypass-errands", "identity-scan", "identity-hash", "witness"] {
        assert_eq!(held(name), naming, "{name}");
    }
    assert_eq!(held("sluice-bypass"), ["DAC_READ_SEARCH", "NET_ADMIN", "SYS_PTRACE"]);
    // The tests may run without SYS_RESOURCE.
    assert_eq!(held("worker-0")[..2], naming);
    assert!(held("worker-0").len() <= 3, "{:?}", held("worker-0"));
    assert!(held("events").iter().all(|one| one == "DAC_OVERRIDE"), "{:?}", held("events"));
    for thread in &threads {
        assert_eq!(thread["no_new_privs"], true, "{thread:#}");
        let confined = thread["confines_itself"] == true;
        assert_eq!(thread["seccomp_filters"].as_u64() >= Some(1), confined, "{thread:#}");
    }
    assert_eq!(thread(&threads, "worker-0")["files_as"], 65_534);
    for gone in ["SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "MKNOD", "BPF"] {
        assert!(!held("sluice").contains(&gone.to_owned()), "{gone}");
    }
}

#[test]
fn it_can_be_switched_off_and_doctor_says_so() {
    let scene = Scene::new();
    let exec = scene.exec().env("SLUICE_HARDENING", "off");
    let running = exec.start(&["sh", "-c", "echo up; sleep 1000"]);
    running.hear("up");
    let doctor = run(&scene, &[&*sluice().display().to_string(), "doctor"]);
    assert!(doctor.text().contains("MORE than intended"), "{doctor}");
    let bad = scene.exec().env("SLUICE_HARDENING", "maybe").run(&["true"]).ended_with(64);
    assert!(bad.stderr.contains("none of enforce, strict, off"), "{bad}");
}
