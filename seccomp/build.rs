//! Tells the tests whether Chromium is installed: 300 MB that not every package index has. Without it its test
//! is counted as ignored, instead of passing unseen.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_chromium)");
    println!("cargo::rerun-if-env-changed=PATH");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("chromium")).find(|file| file.is_file());
    if let Some(found) = found {
        println!("cargo::rerun-if-changed={}", found.display());
        println!("cargo::rustc-cfg=has_chromium");
    } else {
        // A file that is not there is looked for again at each build.
        println!("cargo::rerun-if-changed=/usr/bin/chromium");
    }
}
