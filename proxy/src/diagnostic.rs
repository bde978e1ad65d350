//! Errors in files people write: position, message, remedy; all of them at once.
//!
//! A loader never stops at the first mistake: it records it in [`Diagnostics`] and reads on with what is left. Only
//! when it is done does it ask [`Diagnostics::has_errors`]. What is printed is one line per finding,
//! `file.yaml:12:7: error: unknown key "hots"; did you mean "host"?`, sorted by place, so that editors and CI logs
//! can link it; on a terminal the source line with a caret comes along.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Findings kept; a file of nothing but mistakes must not fill the memory or the screen.
pub const FINDINGS_MAX: usize = 200;

/// A place in a file. Lines and columns count from 1, columns in characters; line 0 means the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// As the user named it.
    pub file: Arc<str>,
    /// From 1; 0 for the whole file.
    pub line: u32,
    /// From 1, in characters; 0 for the whole file.
    pub column: u32,
}

impl Place {
    /// The file as a whole, for what has no line (it cannot be read, it is too large).
    pub fn whole(file: &Arc<str>) -> Self {
        Self { file: Arc::clone(file), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used; the reader should know this about it.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Note => "note",
        })
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// Where.
    pub place: Place,
    /// What is wrong, with the value; no full stop.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.severity, self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// Everything found in one load, over all the files it touched.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    found: Vec<Diagnostic>,
    dropped: usize,
    dropped_error: bool,
    sources: BTreeMap<Arc<str>, Arc<str>>,
}

impl Diagnostics {
    /// Records an error.
    pub fn error(&mut self, place: Place, message: impl Into<String>) {
        self.push(Diagnostic { severity: Severity::Error, place, message: message.into(), help: None });
    }

    /// Records an error and its remedy.
    pub fn error_with_help(&mut self, place: Place, message: impl Into<String>, help: impl Into<String>) {
        let help = Some(help.into());
        self.push(Diagnostic { severity: Severity::Error, place, message: message.into(), help });
    }

    /// Records something worth knowing about a file that can be used.
    pub fn note(&mut self, place: Place, message: impl Into<String>) {
        self.push(Diagnostic { severity: Severity::Note, place, message: message.into(), help: None });
    }

    fn push(&mut self, diagnostic: Diagnostic) {
        if self.found.len() < FINDINGS_MAX {
            self.found.push(diagnostic);
        } else {
            self.dropped += 1;
            self.dropped_error |= diagnostic.severity == Severity::Error;
        }
    }

    /// Remembers a file's text, for the line and caret under a finding.
    pub fn add_source(&mut self, file: &Arc<str>, text: &str) {
        self.sources.insert(Arc::clone(file), text.into());
    }

    /// The files that were read or were to be, `first` before all others.
    pub fn files(&self, first: &Path) -> Vec<PathBuf> {
        let named = self.found.iter().map(|found| &found.place.file).chain(self.sources.keys());
        let named: BTreeSet<&Path> =
            named.map(|file| Path::new(&**file)).filter(|file| *file != first).collect();
        std::iter::once(first).chain(named).map(Path::to_owned).collect()
    }

    /// Whether the load failed.
    pub fn has_errors(&self) -> bool {
        self.dropped_error || self.found.iter().any(|d| d.severity == Severity::Error)
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All findings, by place.
    pub fn sorted(&self) -> Vec<&Diagnostic> {
        let mut sorted: Vec<_> = self.found.iter().collect();
        sorted.sort_by(|a, b| (&a.place, a.severity).cmp(&(&b.place, b.severity)));
        sorted
    }

    /// The findings of one severity, by place.
    pub fn of(&self, severity: Severity) -> Vec<&Diagnostic> {
        self.sorted().into_iter().filter(|d| d.severity == severity).collect()
    }

    /// For a terminal: each finding with its source line and a caret under the column.
    pub fn with_source(&self) -> impl fmt::Display + '_ {
        WithSource(self)
    }

    fn fmt_dropped(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dropped {
            0 => Ok(()),
            n => writeln!(f, "{n} more findings are not shown; mend these first"),
        }
    }
}

impl fmt::Display for Diagnostics {
    /// One line each, by place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self.sorted() {
            writeln!(f, "{diagnostic}")?;
        }
        self.fmt_dropped(f)
    }
}

impl std::error::Error for Diagnostics {}

struct WithSource<'a>(&'a Diagnostics);

impl fmt::Display for WithSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self.0.sorted() {
            writeln!(f, "{diagnostic}")?;
            let place = &diagnostic.place;
            let line = (place.line as usize).checked_sub(1);
            let source = self.0.sources.get(&place.file);
            if let Some(text) = source.zip(line).and_then(|(text, line)| text.lines().nth(line)) {
                excerpt(f, text, place)?;
            }
        }
        self.0.fmt_dropped(f)
    }
}

/// Characters of a source line that are shown; a minified file must not flood the terminal.
const EXCERPT_CHARS_MAX: usize = 160;

fn excerpt(f: &mut fmt::Formatter<'_>, text: &str, place: &Place) -> fmt::Result {
    let before = (place.column as usize).saturating_sub(1);
    if before >= EXCERPT_CHARS_MAX {
        return Ok(());
    }
    // Tabs and control characters would move the caret, or the terminal's cursor.
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let shown: String = text.chars().take(EXCERPT_CHARS_MAX).map(printable).collect();
    writeln!(f, "{:>5} | {shown}", place.line)?;
    writeln!(f, "      | {:before$}^", "")
}

/// `did you mean "host"?` for the known word nearest to `found`, if one is near.
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(found, known).map(|word| format!("did you mean \"{word}\"?"))
}

/// The known word nearest to `found`: a typing slip or two away, never a different word.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are not slips, and the distance costs the product of the lengths.
    const CHARS_MAX: usize = 64;
    if found.chars().count() > CHARS_MAX {
        return None;
    }
    let lower = found.to_lowercase();
    let slips_max = (found.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&lower, word), word))
        .filter(|&(slips, word)| slips <= slips_max && slips < word.chars().count())
        .min_by_key(|&(slips, _)| slips)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: &str, line: u32, column: u32) -> Place {
        Place { file: file.into(), line, column }
    }

    #[test]
    fn findings_are_sorted_by_place_and_print_one_a_line() {
        let mut out = Diagnostics::default();
        out.note(place("b.yaml", 1, 1), "late");
        out.error(place("a.yaml", 12, 7), "second");
        out.error_with_help(place("a.yaml", 2, 3), "unknown key \"hots\"", "did you mean \"host\"?");
        out.error(Place::whole(&"a.yaml".into()), "no such file");
        assert_eq!(
            out.to_string(),
            "a.yaml: error: no such file\n\
             a.yaml:2:3: error: unknown key \"hots\"; did you mean \"host\"?\n\
             a.yaml:12:7: error: second\n\
             b.yaml:1:1: note: late\n"
        );
        assert!(out.has_errors());
    }

    #[test]
    fn a_terminal_sees_the_line_with_a_caret() {
        let mut out = Diagnostics::default();
        out.add_source(&"a.yaml".into(), "version: 1\n\tété: x\n");
        out.error(place("a.yaml", 2, 5), "bad");
        assert_eq!(out.with_source().to_string(), "a.yaml:2:5: error: bad\n    2 |  été: x\n      |     ^\n");
    }

    #[test]
    fn errors_beyond_the_bound_still_fail_the_load() {
        let mut out = Diagnostics::default();
        for _ in 0..FINDINGS_MAX {
            out.note(place("a", 1, 1), "n");
        }
        assert!(!out.has_errors());
        out.error(place("a", 1, 1), "e");
        assert!(out.has_errors());
        assert!(out.to_string().ends_with("1 more findings are not shown; mend these first\n"));
    }

    #[test]
    fn suggestions_are_slips_not_other_words() {
        assert_eq!(nearest("hots", ["port", "host"]), Some("host"));
        assert_eq!(nearest("enforcment", ["enforcement"]), Some("enforcement"));
        assert_eq!(nearest("Host", ["host"]), Some("host"));
        assert_eq!(nearest("binary", ["host", "port", "tls"]), None);
        assert_eq!(nearest("x", ["y"]), None);
    }
}
