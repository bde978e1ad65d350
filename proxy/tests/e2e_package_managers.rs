//! npm, pip and cargo install from a registry through the proxy, confined as any workload. The registry is a folder of
//! the test's own: no internet is needed.

mod e2e;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use e2e::*;

/// Serves a folder on a loopback port, with listings, until it is dropped.
struct Registry {
    server: Child,
    url: String,
}

impl Registry {
    fn serve(folder: &Path) -> Self {
        let mut server = Command::new(python())
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is needed");
        let mut said = String::new();
        BufReader::new(server.stdout.take().expect("stdout")).read_line(&mut said).expect("a line");
        let port = said.split_whitespace().nth(5).expect("Serving HTTP on ADDRESS port PORT").to_owned();
        Self { server, url: format!("http://origin.test:{port}") }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// Runs a script outside any sandbox, to lay out what the registry serves.
fn lay_out(folder: &Path, program: &str, script: &str) {
    let output = Command::new(program).args(["-c", script]).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn asked_by(outcome: &Outcome, program: &str) -> bool {
    let events = outcome.events_of("request.allowed");
    events.iter().any(|event| event["process"]["exe"].as_str().is_some_and(|exe| exe.contains(program)))
}

#[test]
fn npm_installs_a_package_through_the_proxy() {
    let scene = Scene::new();
    let folder = scene.dir().join("registry");
    std::fs::create_dir_all(folder.join("package")).expect("a folder");
    let registry = Registry::serve(&folder);
    let script = format!(
        r#"
set -e
printf '{{"name": "hello", "version": "1.0.0", "main": "index.js"}}' > package/package.json
echo 'module.exports = "installed"' > package/index.js
tar -czf hello-1.0.0.tgz package
sum=$({python} -c 'import base64, hashlib; print(base64.b64encode(hashlib.sha512(open("hello-1.0.0.tgz", "rb").read()).digest()).decode())')
cat > hello <<EOF
{{"name": "hello", "dist-tags": {{"latest": "1.0.0"}}, "versions": {{"1.0.0": {{"name": "hello", "version": "1.0.0",
  "dist": {{"tarball": "{url}/hello-1.0.0.tgz", "integrity": "sha512-$sum"}}}}}}}}
EOF"#,
        python = python(),
        url = registry.url
    );
    lay_out(&folder, "bash", &script);
    let install = format!(
        "mkdir app && cd app && npm install --silent --no-audit --no-fund --cache \"$PWD/cache\" --registry {}/ hello \
         && node -p \"require('hello')\"",
        registry.url
    );
    let outcome = scene.exec().open().run(&["sh", "-c", &install]).ended_with(0);
    assert!(outcome.text().ends_with("installed\n"), "{outcome}");
    assert!(asked_by(&outcome, "node"), "{outcome}");
}

#[test]
fn pip_installs_a_package_through_the_proxy() {
    let scene = Scene::new();
    let folder = scene.dir().join("registry");
    std::fs::create_dir_all(folder.join("simple/hello-pip")).expect("a folder");
    let wheel = "
import zipfile
with zipfile.ZipFile('simple/hello-pip/hello_pip-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('hello_pip.py', 'word = \"installed\"\\n')
    info = 'hello_pip-1.0.dist-info/'
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: hello-pip\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: a test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')";
    lay_out(&folder, python(), wheel);
    let registry = Registry::serve(&folder);
    let install = format!(
        "{python} -m pip install --quiet --no-cache-dir --disable-pip-version-check --target site \
           --index-url {url}/simple/ --trusted-host origin.test hello-pip 2> errors || {{ cat errors; exit 1; }}
         PYTHONPATH=site {python} -c 'import hello_pip; print(hello_pip.word)'",
        python = python(),
        url = registry.url
    );
    let outcome = scene.exec().open().run(&["sh", "-c", &install]).ended_with(0);
    assert!(outcome.text().ends_with("installed\n"), "{outcome}");
    assert!(asked_by(&outcome, "python"), "{outcome}");
}

#[test]
fn cargo_builds_with_a_dependency_it_fetches_through_the_proxy() {
    let scene = Scene::new();
    let folder = scene.dir().join("registry");
    std::fs::create_dir_all(folder.join("index/he/ll")).expect("a folder");
    let registry = Registry::serve(&folder);
    let script = format!(
        r#"
set -e
mkdir -p hello-1.0.0/src
printf '[package]\nname = "hello"\nversion = "1.0.0"\nedition = "2021"\n' > hello-1.0.0/Cargo.toml
echo 'pub const WORD: &str = "installed";' > hello-1.0.0/src/lib.rs
tar -czf hello-1.0.0.crate hello-1.0.0
sum=$(sha256sum hello-1.0.0.crate | cut -d ' ' -f 1)
echo '{{"dl": "{url}/{{crate}}-{{version}}.crate"}}' > index/config.json
echo '{{"name": "hello", "vers": "1.0.0", "deps": [], "cksum": "'$sum'", "features": {{}}, "yanked": false}}' > index/he/ll/hello"#,
        url = registry.url
    );
    lay_out(&folder, "bash", &script);
    // The toolchain is the tests' own; cargo's home is the sandbox's, and nothing is configured but the registry.
    let build = format!(
        r#"
set -e
export CARGO_HOME=$PWD/cargo RUSTC={rustc} CARGO_REGISTRIES_LOCAL_INDEX=sparse+{url}/index/
mkdir -p app/src && cd app
printf '[package]\nname = "app"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\nhello = {{ version = "1", registry = "local" }}\n' > Cargo.toml
echo 'fn main() {{ println!("{{}}", hello::WORD); }}' > src/main.rs
{cargo} run -q 2> errors || {{ cat errors; exit 1; }}"#,
        cargo = env!("CARGO"),
        rustc = Path::new(env!("CARGO")).with_file_name("rustc").display(),
        url = registry.url
    );
    let outcome = scene.exec().open().run(&["bash", "-c", &build]).ended_with(0);
    assert!(outcome.text().ends_with("installed\n"), "{outcome}");
    assert!(asked_by(&outcome, "cargo"), "{outcome}");
}
