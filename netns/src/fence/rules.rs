//! The vocabulary of our rules, over the `nftables` crate's types.

use std::borrow::Cow;
use std::collections::HashSet;

use nftables::expr::{
    Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField,
};
use nftables::schema::{Chain, Counter, NfCmd, NfListObject, NfObject, Nftables, Rule, Table};
use nftables::stmt::{
    self, Counter as CountStatement, JumpTarget, Limit, Log, LogFlag, Match, Operator, Reject, RejectType,
    Statement,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};

use super::LogPrefix;
use crate::limits;

/// How many lines a fence may write to the kernel log, per protocol.
///
/// Past it lines are missing, never refusals or counts: a limit in the same rule as a verdict would limit the
/// verdict, so it stands in the log rule alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimit {
    /// Lines a second; 0 means no limit.
    pub per_second: u32,
    /// Lines at once before the rate holds; 0 is taken as 1.
    pub burst: u32,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self { per_second: limits::LOG_LINES_PER_SECOND, burst: limits::LOG_LINES_BURST }
    }
}

impl LogLimit {
    /// Every refused packet is logged.
    pub const OFF: Self = Self { per_second: 0, burst: 0 };

    fn statement(self) -> Option<Statement<'static>> {
        (self.per_second > 0).then(|| {
            Statement::Limit(Limit {
                rate: self.per_second,
                rate_unit: None,
                per: Some("second".into()),
                burst: Some(self.burst.max(1)),
                burst_unit: None,
                inv: None,
            })
        })
    }
}

/// A table under construction: its objects in the order in which they are added.
pub(super) struct TableBuilder {
    family: NfFamily,
    name: &'static str,
    objects: Vec<NfListObject<'static>>,
}

/// A finished table.
#[derive(Debug)]
pub(super) struct FenceTable {
    pub(super) family: NfFamily,
    pub(super) name: &'static str,
    pub(super) objects: Vec<NfListObject<'static>>,
}

impl TableBuilder {
    pub(super) fn new(family: NfFamily, name: &'static str) -> Self {
        Self { family, name, objects: Vec::new() }
    }

    pub(super) fn counter(&mut self, name: &'static str) {
        self.objects.push(NfListObject::Counter(Counter {
            family: self.family,
            table: self.name.into(),
            name: name.into(),
            packets: Some(0),
            bytes: Some(0),
            ..Counter::default()
        }));
    }

    /// A chain that packets enter by `hook`, and that drops what no rule decides.
    pub(super) fn base_chain(&mut self, name: &'static str, hook: NfHook, priority: i32) {
        self.chain(Chain {
            name: name.into(),
            _type: Some(NfChainType::Filter),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Drop),
            ..Chain::default()
        });
    }

    /// A chain that rules go to.
    pub(super) fn plain_chain(&mut self, name: &'static str) {
        self.chain(Chain { name: name.into(), ..Chain::default() });
    }

    fn chain(&mut self, chain: Chain<'static>) {
        self.objects.push(NfListObject::Chain(Chain {
            family: self.family,
            table: self.name.into(),
            ..chain
        }));
    }

    /// A rule at the end of `chain`. `comment` is what an operator reads in `nft list table`.
    pub(super) fn rule(
        &mut self,
        chain: &'static str,
        comment: &'static str,
        statements: impl IntoIterator<Item = Statement<'static>>,
    ) {
        self.objects.push(NfListObject::Rule(Rule {
            family: self.family,
            table: self.name.into(),
            chain: chain.into(),
            expr: Cow::Owned(statements.into_iter().collect()),
            comment: Some(comment.into()),
            ..Rule::default()
        }));
    }

    pub(super) fn finish(self) -> FenceTable {
        FenceTable { family: self.family, name: self.name, objects: self.objects }
    }
}

impl FenceTable {
    /// The transaction that makes the kernel's table exactly this one, whatever was there.
    pub(super) fn replace(&self) -> Nftables<'static> {
        // Added first because deleting what is not there would fail the transaction.
        let mut commands =
            vec![NfCmd::Add(self.table()), NfCmd::Delete(self.table()), NfCmd::Add(self.table())];
        commands.extend(self.objects.iter().cloned().map(NfCmd::Add));
        Nftables { objects: commands.into_iter().map(NfObject::CmdObject).collect() }
    }

    fn table(&self) -> NfListObject<'static> {
        NfListObject::Table(Table { family: self.family, name: self.name.into(), handle: None })
    }
}

/// The transaction that removes a table, there or not.
pub(super) fn removal(family: NfFamily, name: &'static str) -> Nftables<'static> {
    let table = FenceTable { family, name, objects: Vec::new() }.table();
    let commands = [NfCmd::Add(table.clone()), NfCmd::Delete(table)];
    Nftables { objects: commands.into_iter().map(NfObject::CmdObject).collect() }
}

// Statements, in the words of nft(8).

pub(super) fn accept() -> Statement<'static> {
    Statement::Accept(None)
}

pub(super) fn drop() -> Statement<'static> {
    Statement::Drop(None)
}

pub(super) fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

pub(super) fn count(counter: &'static str) -> Statement<'static> {
    Statement::Counter(CountStatement::Named(counter.into()))
}

/// `limit … counter … log …`: the counter counts the lines that were written.
pub(super) fn log(limit: LogLimit, counter: &'static str, prefix: &LogPrefix) -> Vec<Statement<'static>> {
    let line = Statement::Log(Some(Log {
        prefix: Some(prefix.as_str().to_owned().into()),
        group: None,
        snaplen: None,
        queue_threshold: None,
        // Below what any console shows by default: a slow serial console must not slow the host.
        level: Some(stmt::LogLevel::Debug),
        // UID, GID, sequence number and options identify the attempt.
        flags: Some(HashSet::from([LogFlag::All])),
    }));
    limit.statement().into_iter().chain([count(counter), line]).collect()
}

pub(super) fn reject_with_reset() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)))
}

pub(super) fn reject_as_prohibited() -> Statement<'static> {
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited))))
}

// Conditions.

/// `fib daddr type local`: the destination is an address of this namespace.
pub(super) fn to_local_address() -> Statement<'static> {
    let fib = Fib { result: FibResult::Type, flags: HashSet::from([FibFlag::Daddr]) };
    is(NamedExpression::Fib(fib), text("local"))
}

pub(super) fn meta_is(key: MetaKey, value: &'static str) -> Statement<'static> {
    is(NamedExpression::Meta(Meta { key }), text(value))
}

/// `meta l4proto`.
pub(super) fn protocol_is(protocol: &'static str) -> Statement<'static> {
    meta_is(MetaKey::L4proto, protocol)
}

/// The packet belongs to a process's socket. The kernel's own (neighbour discovery, multicast membership) do not,
/// and for them the expression never matches.
pub(super) fn sent_by_a_process() -> Statement<'static> {
    Statement::Match(Match {
        left: Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Skuid })),
        right: Expression::Number(0),
        op: Operator::GEQ,
    })
}

pub(super) fn field_is(
    protocol: &'static str,
    field: &'static str,
    right: Expression<'static>,
) -> Statement<'static> {
    let payload = PayloadField { protocol: protocol.into(), field: field.into() };
    is(NamedExpression::Payload(Payload::PayloadField(payload)), right)
}

pub(super) fn text(value: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(value.into())
}

fn is(left: NamedExpression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::EQ })
}
