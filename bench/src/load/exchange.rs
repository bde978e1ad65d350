//! A message and its answer over a standing tunnel: ping-pong, WebSocket frames.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use super::session::{Failure, Session, Step, Turn, unless_blocked};
use crate::poll::Interest;

/// The two messages of an exchange.
#[derive(Debug)]
pub(crate) struct Messages {
    /// What the client sends.
    pub(crate) question: Vec<u8>,
    /// What must come back.
    pub(crate) answer: Vec<u8>,
}

/// Exchanges over one tunnel.
#[derive(Debug)]
pub(crate) struct Exchange {
    stream: Option<TcpStream>,
    messages: Arc<Messages>,
    received: usize,
}

impl Messages {
    /// The same `bytes` bytes both ways.
    pub(crate) fn echo(bytes: usize) -> Self {
        let question: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        Self { answer: question.clone(), question }
    }

    /// A masked binary frame of `payload` bytes (at most 125) and the unmasked echo of it (RFC 6455, section 5.2).
    pub(crate) fn frames(payload: u8) -> Self {
        const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
        let body: Vec<u8> = (0..payload).collect();
        let mut question = vec![0x82, 0x80 | payload];
        question.extend(MASK);
        question.extend(body.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        let mut answer = vec![0x82, payload];
        answer.extend(body);
        Self { question, answer }
    }
}

impl Exchange {
    /// Takes over an open tunnel.
    pub(crate) fn over(stream: TcpStream, messages: Arc<Messages>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: Some(stream), messages, received: 0 })
    }
}

impl Session for Exchange {
    fn join(&mut self, turn: &mut Turn<'_>) -> Result<(), Failure> {
        let Some(stream) = &self.stream else { return Ok(()) };
        turn.poll.add(stream, Interest::EPOLLIN, turn.token).map_err(Failure::while_("epoll_ctl"))
    }

    fn begin(&mut self, _turn: &mut Turn<'_>) -> Result<Step, Failure> {
        let Some(mut stream) = self.stream.as_ref() else { return Err(Failure::Closed("beginning")) };
        self.received = 0;
        let question = &self.messages.question;
        match unless_blocked(stream.write(question), "sending the message")? {
            Some(sent) if sent == question.len() => Ok(Step::Waiting),
            _ => Err(Failure::Closed("sending: an idle tunnel did not take one message whole")),
        }
    }

    fn ready(&mut self, turn: &mut Turn<'_>, _ready: Interest) -> Result<Step, Failure> {
        let Some(mut stream) = self.stream.as_ref() else { return Ok(Step::Waiting) };
        let answer = &self.messages.answer;
        let Some(count) = unless_blocked(stream.read(turn.scratch), "reading the answer")? else {
            return Ok(Step::Waiting);
        };
        if count == 0 {
            return Err(Failure::Closed("reading the answer"));
        }
        let whole = self.received + count;
        if answer.get(self.received..whole) != turn.scratch.get(..count) {
            return Err(Failure::Changed("echoing"));
        }
        self.received = whole;
        turn.moved += count as u64;
        Ok(if whole == answer.len() { Step::Done } else { Step::Waiting })
    }

    fn recover(&mut self) -> bool {
        self.stream = None;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_masked_on_the_way_out_and_plain_on_the_way_back() {
        let messages = Messages::frames(5);
        assert_eq!(messages.answer, [0x82, 5, 0, 1, 2, 3, 4]);
        assert_eq!(messages.question[..2], [0x82, 0x85]);
        let mask = &messages.question[2..6];
        let unmasked: Vec<u8> =
            messages.question[6..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(unmasked, messages.answer[2..]);
    }
}
