//! The vocabulary of our rules, over the `nftables` crate's types.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::Ipv6Addr;

use nftables::expr::{
    Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadBase, PayloadField,
    PayloadRaw, SetItem,
};
use nftables::schema::{
    Chain, Counter, NfCmd, NfListObject, NfObject, Nftables, Rule, Set, SetType, SetTypeValue, Table,
};
use nftables::stmt::{
    self, Counter as CountStatement, JumpTarget, Limit, Log, LogFlag, Match, Operator, Reject, RejectType,
    Statement,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};

use super::{LogPrefix, Traffic};
use crate::limits;

/// Where the lines of a fence go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogInto {
    /// The kernel log, which all of the host shares (`/dev/kmsg`).
    #[default]
    Kernel,
    /// Netlink messages of this group (NFLOG), for whoever bound it in the fence's namespace.
    Group(u16),
}

/// Where a fence's lines go, and how many it may write per protocol.
///
/// Past it lines are missing, never refusals or counts: a limit in the same rule as a verdict would limit the
/// verdict, so it stands in the log rule alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimit {
    /// Lines a second; 0 means no limit.
    pub per_second: u32,
    /// Lines at once before the rate holds; 0 is taken as 1.
    pub burst: u32,
    /// Where they go.
    pub into: LogInto,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self {
            per_second: limits::LOG_LINES_PER_SECOND,
            burst: limits::LOG_LINES_BURST,
            into: LogInto::Kernel,
        }
    }
}

impl LogLimit {
    /// Every refused packet is logged.
    pub const OFF: Self = Self { per_second: 0, burst: 0, into: LogInto::Kernel };

    /// The condition that lets so many packets pass on to the rest of its rule; none if there is no limit.
    pub(super) fn statement(self) -> Option<Statement<'static>> {
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

    pub(super) fn counter(&mut self, name: impl Into<Cow<'static, str>>) {
        self.counter_from(name, Traffic::default());
    }

    /// A counter that goes on from `traffic`, as far as nft's types go (4 GiB).
    pub(super) fn counter_from(&mut self, name: impl Into<Cow<'static, str>>, traffic: Traffic) {
        self.objects.push(NfListObject::Counter(Counter {
            family: self.family,
            table: self.name.into(),
            name: name.into(),
            packets: Some(traffic.packets.try_into().unwrap_or(u32::MAX)),
            bytes: Some(traffic.bytes.try_into().unwrap_or(u32::MAX)),
            ..Counter::default()
        }));
    }

    /// A chain that packets enter by `hook`, and that drops what no rule decides.
    pub(super) fn base_chain(&mut self, name: impl Into<Cow<'static, str>>, hook: NfHook, priority: i32) {
        self.chain(Chain {
            name: name.into(),
            _type: Some(NfChainType::Filter),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Drop),
            ..Chain::default()
        });
    }

    /// A chain that every packet arriving by `link` enters before anything else sees it.
    pub(super) fn ingress_chain(&mut self, name: impl Into<Cow<'static, str>>, link: String, priority: i32) {
        self.chain(Chain {
            name: name.into(),
            _type: Some(NfChainType::Filter),
            hook: Some(NfHook::Ingress),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Drop),
            dev: Some(link.into()),
            ..Chain::default()
        });
    }

    /// A set of tuples of `types`.
    pub(super) fn set(
        &mut self,
        name: &'static str,
        types: &'static [SetType],
        tuples: impl Iterator<Item = Vec<Expression<'static>>>,
    ) {
        let elements: Vec<_> = tuples.map(concatenation).collect();
        self.objects.push(NfListObject::Set(Box::new(Set {
            family: self.family,
            table: self.name.into(),
            name: name.into(),
            set_type: SetTypeValue::Concatenated(types.into()),
            elem: (!elements.is_empty()).then_some(elements.into()),
            ..Set::default()
        })));
    }

    /// A chain that rules go to.
    pub(super) fn plain_chain(&mut self, name: impl Into<Cow<'static, str>>) {
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
        chain: impl Into<Cow<'static, str>>,
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
    /// The transaction that makes the table in a namespace that has none of its name, and fails in any other.
    pub(super) fn create(&self) -> Nftables<'static> {
        self.transaction([NfCmd::Create(self.table())])
    }

    /// The transaction that makes the kernel's table exactly this one, whatever was there. Dearer than
    /// [`Self::create`] by some 14 ms, in which the kernel waits until no packet looks at the old table.
    pub(super) fn replace(&self) -> Nftables<'static> {
        // Added first because deleting what is not there would fail the transaction.
        self.transaction([NfCmd::Add(self.table()), NfCmd::Delete(self.table()), NfCmd::Add(self.table())])
    }

    /// The transaction that makes the table and removes it, which shows whether the kernel would take it.
    pub(super) fn come_and_go(&self) -> Nftables<'static> {
        let mut all = self.create();
        all.objects.to_mut().push(NfObject::CmdObject(NfCmd::Delete(self.table())));
        all
    }

    fn transaction(&self, table: impl IntoIterator<Item = NfCmd<'static>>) -> Nftables<'static> {
        let objects = self.objects.iter().cloned().map(NfCmd::Add);
        Nftables { objects: table.into_iter().chain(objects).map(NfObject::CmdObject).collect() }
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

pub(super) fn jump(chain: &'static str) -> Statement<'static> {
    Statement::Jump(JumpTarget { target: chain.into() })
}

pub(super) fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

pub(super) fn count(counter: impl Into<Cow<'static, str>>) -> Statement<'static> {
    Statement::Counter(CountStatement::Named(counter.into()))
}

/// A line in the log.
pub(super) fn log(prefix: &LogPrefix, into: LogInto) -> Statement<'static> {
    let (group, level, flags) = match into {
        // Below what any console shows by default: a slow serial console must not slow the host. UID, GID, sequence
        // number and options identify the attempt.
        LogInto::Kernel => (None, Some(stmt::LogLevel::Debug), Some(HashSet::from([LogFlag::All]))),
        // The messages hold all that, and have no level.
        LogInto::Group(group) => (Some(group.into()), None, None),
    };
    Statement::Log(Some(Log {
        prefix: Some(prefix.as_str().to_owned().into()),
        group,
        snaplen: None,
        queue_threshold: None,
        level,
        flags,
    }))
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
    is(payload(protocol, field), right)
}

/// A field of the IPv6 header is this address.
pub(super) fn address_is(field: &'static str, address: Ipv6Addr) -> Statement<'static> {
    field_is("ip6", field, text(address.to_string()))
}

/// The address a neighbour advertisement speaks of, behind its first eight octets (RFC 4861, 4.4). By its place, as older
/// versions of nft have no name for it.
pub(super) fn advertised_is(address: Ipv6Addr) -> Statement<'static> {
    let target = PayloadRaw { base: PayloadBase::TH, offset: 64, len: 128 };
    is(NamedExpression::Payload(Payload::PayloadRaw(target)), text(format!("{:#x}", address.to_bits())))
}

/// The tuple of `fields` is in `set` (written `@name`).
pub(super) fn tuple_is_in(
    fields: impl IntoIterator<Item = NamedExpression<'static>>,
    set: &'static str,
) -> Statement<'static> {
    let fields = fields.into_iter().map(Expression::Named).collect();
    is(NamedExpression::Concat(fields), text(set))
}

pub(super) fn payload(protocol: &'static str, field: &'static str) -> NamedExpression<'static> {
    NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    }))
}

/// `iifname`.
pub(super) fn arrival_link() -> NamedExpression<'static> {
    NamedExpression::Meta(Meta { key: MetaKey::Iifname })
}

/// One of several values.
pub(super) fn any_of(names: impl IntoIterator<Item = &'static str>) -> Expression<'static> {
    let items = names.into_iter().map(|name| SetItem::Element(text(name))).collect();
    Expression::Named(NamedExpression::Set(items))
}

fn concatenation(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}

pub(super) fn text(value: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(value.into())
}

fn is(left: NamedExpression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::EQ })
}
