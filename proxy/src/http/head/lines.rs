//! Finding lines: CRLF and nothing else ends one, bounds hold while it is still incomplete, no octet is scanned twice.

use super::{Kind, first_octet_fault};
use crate::http::fault::Fault;
use crate::http::fields::Span;
use crate::http::limits::HeadLimits;

/// A place in a growing head.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct Lines {
    /// Where the current line starts.
    start: usize,
    /// Up to where no LF was found.
    scanned: usize,
    /// Whether the one empty line that may precede a request was seen.
    blank_seen: bool,
    /// Where the field lines start; 0 while the first line is read.
    fields_start: usize,
    field_count: usize,
}

/// What comes behind the first line.
pub(in crate::http) enum Line<'b> {
    /// A field line without its CRLF.
    Field(&'b [u8]),
    /// The empty line.
    End {
        /// Where the field lines are.
        fields: Span,
        /// Octets of the whole head.
        len: usize,
    },
}

impl Lines {
    /// The first line, without its CRLF; never empty.
    pub(in crate::http) fn first<'b>(
        &mut self,
        buf: &'b [u8],
        limits: &HeadLimits,
        kind: Kind,
    ) -> Result<Option<&'b [u8]>, Fault> {
        loop {
            match buf.get(self.start).map(|&octet| first_octet_fault(octet, kind)) {
                None => return Ok(None),
                Some(Some(fault)) => return Err(fault),
                Some(None) => {}
            }
            // With its CR the line may take one octet more; its LF must still be within the head.
            let lf_max = self.start.saturating_add(limits.line_octets_max).saturating_add(1);
            let lf_max = lf_max.min(limits.head_octets_max.saturating_sub(1));
            let Some(line) = self.line(buf, lf_max, Fault::LineTooLong)? else { return Ok(None) };
            if !line.is_empty() {
                self.fields_start = self.start;
                return Ok(Some(line));
            }
            if self.blank_seen || kind == Kind::Response {
                return Err(Fault::LeadingSpace);
            }
            self.blank_seen = true;
        }
    }

    /// The next line behind the first.
    pub(in crate::http) fn next<'b>(
        &mut self,
        buf: &'b [u8],
        limits: &HeadLimits,
    ) -> Result<Option<Line<'b>>, Fault> {
        let fields_end = self.start;
        let lf_max = limits.head_octets_max.saturating_sub(1);
        let Some(line) = self.line(buf, lf_max, Fault::HeadTooLarge)? else { return Ok(None) };
        if line.is_empty() {
            return Ok(Some(Line::End { fields: Span::new(self.fields_start, fields_end), len: self.start }));
        }
        if self.field_count >= limits.fields_max {
            return Err(Fault::TooManyFields);
        }
        self.field_count = self.field_count.saturating_add(1);
        Ok(Some(Line::Field(line)))
    }

    /// Whether any octet was seen.
    pub(in crate::http) fn has_started(&self) -> bool {
        self.scanned > 0
    }

    /// The line at `start`, if its LF has arrived. `too_long` if the LF is, or can only be, behind `lf_max`.
    fn line<'b>(&mut self, buf: &'b [u8], lf_max: usize, too_long: Fault) -> Result<Option<&'b [u8]>, Fault> {
        let fresh = buf.get(self.scanned..).unwrap_or_default();
        let Some(lf) = memchr::memchr(b'\n', fresh).and_then(|at| self.scanned.checked_add(at)) else {
            self.scanned = buf.len();
            return if buf.len() > lf_max { Err(too_long) } else { Ok(None) };
        };
        if lf > lf_max {
            return Err(too_long);
        }
        let line = buf.get(self.start..lf).and_then(|line| line.strip_suffix(b"\r"));
        self.start = lf.saturating_add(1);
        self.scanned = self.start;
        line.map(Some).ok_or(Fault::BareLf)
    }
}
