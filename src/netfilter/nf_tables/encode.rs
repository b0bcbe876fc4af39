//! Statements as the kernel takes them: expressions that load a register, compare it,
//! or act (`linux/netfilter/nf_tables.h`). Byte for byte what nft sends.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_netfilter::nftables::MetaKey;

use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::among;
use crate::netfilter::nf_tables::among::{Among, End, Field, Values};
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::{Family, family_of};
use crate::netfilter::nfnetlink::attributes::Attributes;

/// `enum nft_payload_bases`.
pub const LINK_HEADER: u32 = 0;
pub const NETWORK_HEADER: u32 = 1;
pub const TRANSPORT_HEADER: u32 = 2;

/// Where an Ethernet header has its source, and a transport header its destination port.
pub const ETHER_SOURCE: u32 = 6;
pub const SOURCE_PORT: u32 = 0;
pub const DESTINATION_PORT: u32 = 2;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`: what `meta nfproto` loads, and names of families.
pub const IPV4: u8 = 2;
pub const IPV6: u8 = 10;

/// `fib daddr type`: `NFTA_FIB_RESULT`, `NFTA_FIB_FLAGS` and their values; and
/// `RTN_LOCAL`, the type of an address of this host.
pub const FIB_RESULT: (u16, u32) = (2, 3);
pub const FIB_FLAGS: (u16, u32) = (3, 2);
pub const LOCAL: u32 = 2;

/// `ct status`: `NFTA_CT_KEY` and its value; and `IPS_DST_NAT`.
pub const CT_STATUS: (u16, u32) = (2, 2);
pub const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// `ct state`: the value of `NFTA_CT_KEY`; and the bits of established and related.
pub const CT_STATE: (u16, u32) = (2, 0);
pub const ESTABLISHED_OR_RELATED: u32 = 1 << 1 | 1 << 2;

/// `NFTA_LOOKUP_SET`, `NFTA_LOOKUP_SREG`, `NFTA_LOOKUP_DREG`, `NFTA_LOOKUP_SET_ID` and
/// `NFTA_LOOKUP_FLAGS`, of which 1 asks for the opposite.
pub const LOOKUP_SET: u16 = 1;
pub const LOOKUP_REGISTER: u16 = 2;
pub const LOOKUP_RESULT: u16 = 3;
const LOOKUP_SET_ID: u16 = 4;
pub const LOOKUP_FLAGS: u16 = 5;

/// `enum nft_cmp_ops`, those of ranges.
pub const AT_MOST: u32 = 3;
pub const AT_LEAST: u32 = 5;

/// `NFTA_META_KEY`.
const META_KEY: u16 = 2;

/// Interface names are compared with the zero bytes that fill the register.
pub const INTERFACE_NAME: usize = 16;

/// Where the addresses of `family` begin in the network header, and their length.
pub fn address_place(family: Family, end: End) -> (u32, u32) {
    match (family, end) {
        (Family::Ip6, End::Source) => (8, 16),
        (Family::Ip6, End::Destination) => (24, 16),
        (_, End::Source) => (12, 4),
        (_, End::Destination) => (16, 4),
    }
}

/// `enum nft_registers`: the first two of 16 bytes, and that of what is decided.
const FIRST: u32 = 1;
const SECOND: u32 = 2;
const VERDICT: u32 = 0;

/// `enum nft_verdicts`, `NF_DROP` and `NF_ACCEPT`.
pub const DROP: i32 = 0;
pub const ACCEPT: i32 = 1;
pub const JUMP: i32 = -3;
pub const GOTO: i32 = -4;
pub const RETURN: i32 = -5;

/// The expressions of a rule in a table of `family`, as the kernel takes them. The sets that
/// are part of the rule are those made in the same transaction under the numbers from
/// `first_set` on.
pub fn encode(family: Family, statements: &[Statement], first_set: u32) -> Vec<u8> {
    let mut encoder = Encoder::new(family);
    encoder.next_set = first_set;
    for statement in statements {
        encoder.add(statement);
    }
    encoder.finish()
}

/// Expressions in the making.
pub struct Encoder {
    /// What needs no test, because the table sees nothing else, or it was tested before.
    pub network: Option<Family>,
    /// As tested before.
    transport: Option<Protocol>,
    /// The number in the transaction of the next set that is part of the rule.
    next_set: u32,
    list: Attributes,
}

impl Encoder {
    /// None yet, for a table of `family`.
    pub fn new(family: Family) -> Self {
        Self {
            network: Some(family),
            transport: None,
            next_set: 0,
            list: Attributes::default(),
        }
    }

    /// None yet, for a table of `family`, behind what is in `list`.
    pub fn behind(family: Family, list: Attributes) -> Self {
        Self {
            list,
            ..Self::new(family)
        }
    }

    /// The list with all of them.
    pub fn into_list(self) -> Attributes {
        self.list
    }

    /// All of them, as a rule has them.
    pub fn finish(self) -> Vec<u8> {
        self.list.finish()
    }

    /// What `statement` asks or does.
    pub fn add(&mut self, statement: &Statement) {
        match statement {
            Statement::Address { end, is, net } => self.address(*end, *is, *net),
            Statement::Port { protocol, port } => {
                self.require_transport(*protocol);
                self.payload(TRANSPORT_HEADER, DESTINATION_PORT, 2);
                self.compare(true, &port.to_be_bytes());
            }
            Statement::Among(among) => self.among(among),
            Statement::Interface { end, is, name } => {
                self.meta(match end {
                    End::Source => MetaKey::Iifname,
                    End::Destination => MetaKey::Oifname,
                });
                let mut name = name.clone().into_bytes();
                name.resize(INTERFACE_NAME, 0);
                self.compare(*is, &name);
            }
            Statement::Mark { is, mark } => {
                self.meta(MetaKey::Mark);
                self.compare(*is, &mark.to_ne_bytes());
            }
            Statement::LocalDestination => {
                self.numbers("fib", &[FIB_FLAGS, FIB_RESULT, (1, 1)]);
                self.compare(true, &LOCAL.to_ne_bytes());
            }
            Statement::Translated => {
                self.numbers("ct", &[CT_STATUS, (1, 1)]);
                self.mask(&DESTINATION_TRANSLATED.to_ne_bytes());
                self.compare(false, &[0; 4]);
            }
            Statement::Established => {
                self.numbers("ct", &[CT_STATE, (1, 1)]);
                self.mask(&ESTABLISHED_OR_RELATED.to_ne_bytes());
                self.compare(false, &[0; 4]);
            }
            Statement::InSet { end, family, set } => self.in_set(*end, *family, set),
            Statement::EtherSource(mac) => {
                self.payload(LINK_HEADER, ETHER_SOURCE, 6);
                self.compare(true, &mac.0);
            }
            Statement::Jump(chain) => self.verdict(JUMP, Some(chain)),
            Statement::Goto(chain) => self.verdict(GOTO, Some(chain)),
            Statement::Return => self.verdict(RETURN, None),
            Statement::Accept => self.verdict(ACCEPT, None),
            Statement::Drop => self.verdict(DROP, None),
            Statement::Masquerade => self.numbers("masq", &[]),
            Statement::Dnat { to, port } => self.dnat(*to, *port),
        }
    }

    /// Goes on with packets of `family` only.
    fn require(&mut self, family: Family) {
        if self.network != Some(family) {
            self.network = Some(family);
            self.meta(MetaKey::Nfproto);
            self.compare(true, &[if family == Family::Ip6 { IPV6 } else { IPV4 }]);
        }
    }

    /// Goes on with packets of `protocol` only.
    fn require_transport(&mut self, protocol: Protocol) {
        if self.transport != Some(protocol) {
            self.transport = Some(protocol);
            self.meta(MetaKey::L4Proto);
            self.compare(true, &[protocol.number()]);
        }
    }

    fn among(&mut self, Among { field, is, of }: &Among) {
        match field {
            Field::Address(family, end) => {
                self.require(*family);
                let (offset, length) = address_place(*family, *end);
                self.payload(NETWORK_HEADER, offset, length);
            }
            Field::Port(protocol, end) => {
                self.require_transport(*protocol);
                let offset = match end {
                    End::Source => SOURCE_PORT,
                    End::Destination => DESTINATION_PORT,
                };
                self.payload(TRANSPORT_HEADER, offset, 2);
            }
            Field::Interface(End::Source) => self.meta(MetaKey::Iifname),
            Field::Interface(End::Destination) => self.meta(MetaKey::Oifname),
            Field::Mark => self.meta(MetaKey::Mark),
        }
        match of {
            Values::One(value) => self.compare(*is, &field.bytes(*value)),
            Values::Beginning(start) => self.compare(*is, start.as_bytes()),
            Values::Range((first, last)) if *is => {
                self.compare_as(AT_LEAST, &field.bytes(*first));
                self.compare_as(AT_MOST, &field.bytes(*last));
            }
            Values::Range((first, last)) => self.expression("range", |range| {
                range.number(1, FIRST);
                // `NFT_RANGE_NEQ`.
                range.number(2, 1);
                value(range, 3, &field.bytes(*first));
                value(range, 4, &field.bytes(*last));
            }),
            Values::Set(_) => {
                let id = self.next_set;
                self.next_set += 1;
                self.look_up(among::NAME, Some(id), *is);
            }
            Values::Stored(name) => self.look_up(name, None, *is),
        }
    }

    /// Goes on where the first register is in a set, or is not.
    fn look_up(&mut self, set: &str, id: Option<u32>, is: bool) {
        self.expression("lookup", |lookup| {
            lookup.number(LOOKUP_REGISTER, FIRST);
            lookup.text(LOOKUP_SET, set);
            if let Some(id) = id {
                lookup.number(LOOKUP_SET_ID, id);
            }
            if !is {
                lookup.number(LOOKUP_FLAGS, 1);
            }
        });
    }

    fn in_set(&mut self, end: End, family: Family, set: &str) {
        self.require(family);
        let (offset, length) = address_place(family, end);
        self.payload(NETWORK_HEADER, offset, length);
        self.look_up(set, None, true);
    }

    fn address(&mut self, end: End, is: bool, net: IpNet) {
        let family = family_of(net.addr());
        self.require(family);
        let (offset, length) = address_place(family, end);
        let mut address = octets(net.trunc().addr());
        // Whole bytes need no mask: less is loaded and compared.
        let bits = net.prefix_len();
        if bits > 0 && bits.is_multiple_of(8) {
            address.truncate(usize::from(bits / 8));
            self.payload(NETWORK_HEADER, offset, u32::from(bits / 8));
        } else {
            self.payload(NETWORK_HEADER, offset, length);
            self.mask(&octets(net.netmask()));
        }
        self.compare(is, &address);
    }

    fn dnat(&mut self, to: IpAddr, port: u16) {
        /// `NFTA_NAT_TYPE` is `NFT_NAT_DNAT`.
        const TYPE: (u16, u32) = (1, 1);
        const FAMILY: u16 = 2;
        const ADDRESS_IN: (u16, u32) = (3, 1);
        const PORT_IN: (u16, u32) = (5, 2);
        /// `NF_NAT_RANGE_PROTO_SPECIFIED`.
        const FLAGS: (u16, u32) = (7, 2);
        self.immediate(FIRST, &octets(to));
        self.immediate(SECOND, &port.to_be_bytes());
        let family = (FAMILY, nfproto(to).into());
        self.numbers("nat", &[TYPE, family, ADDRESS_IN, PORT_IN, FLAGS]);
    }

    /// Loads something that is known of the packet into the first register.
    pub fn meta(&mut self, key: MetaKey) {
        self.numbers("meta", &[(META_KEY, key.into()), (1, FIRST)]);
    }

    /// Sets something that is known of the packet to a value.
    pub fn set_meta(&mut self, key: MetaKey, value: &[u8]) {
        /// `NFTA_META_SREG`.
        const REGISTER: u16 = 3;
        self.immediate(FIRST, value);
        self.numbers("meta", &[(META_KEY, key.into()), (REGISTER, FIRST)]);
    }

    /// Loads bytes of the packet into the first register.
    pub fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.numbers(
            "payload",
            &[(1, FIRST), (2, base), (3, offset), (4, length)],
        );
    }

    /// Keeps only these bits of the first register.
    pub fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        self.expression("bitwise", |bitwise| {
            bitwise.number(1, FIRST);
            bitwise.number(2, FIRST);
            bitwise.number(3, length);
            value(bitwise, 4, mask);
            value(bitwise, 5, &vec![0; mask.len()]);
        });
    }

    /// Goes on where the first register has this value, or has not.
    pub fn compare(&mut self, is: bool, with: &[u8]) {
        self.compare_as((!is).into(), with);
    }

    /// As [`Self::compare`], in the manner `how` of `enum nft_cmp_ops`.
    fn compare_as(&mut self, how: u32, with: &[u8]) {
        self.expression("cmp", |cmp| {
            cmp.number(1, FIRST);
            cmp.number(2, how);
            value(cmp, 3, with);
        });
    }

    /// Loads a value into a register.
    fn immediate(&mut self, register: u32, loaded: &[u8]) {
        self.expression("immediate", |immediate| {
            immediate.number(1, register);
            value(immediate, 2, loaded);
        });
    }

    fn verdict(&mut self, verdict: i32, chain: Option<&str>) {
        self.expression("immediate", |immediate| {
            immediate.number(1, VERDICT);
            immediate.nest(2, |data| {
                data.nest(2, |inner| {
                    inner.number(1, verdict.cast_unsigned());
                    if let Some(chain) = chain {
                        inner.text(2, chain);
                    }
                });
            });
        });
    }

    /// An expression whose attributes are numbers.
    fn numbers(&mut self, name: &str, numbers: &[(u16, u32)]) {
        self.expression(name, |data| {
            for (kind, value) in numbers {
                data.number(*kind, *value);
            }
        });
    }

    /// The expression `name` with the attributes that `fill` adds.
    pub fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes)) {
        self.list.nest(1, |expression| {
            expression.text(1, name);
            expression.nest(2, fill);
        });
    }
}

/// A value of a register (`NFTA_DATA_VALUE`).
fn value(list: &mut Attributes, kind: u16, bytes: &[u8]) {
    list.nest(kind, |data| data.bytes(1, bytes));
}

fn nfproto(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

/// The address as packets have it.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::mac::Mac;
    use crate::netfilter::model::Protocol;
    use crate::netfilter::nf_tables::decode::{decode, destination_port};

    /// Captured from nft 1.0.6 on Linux 6.18, of which one line is one expression: the
    /// attributes of its message to the kernel.
    mod captured {
        pub const NFPROTO_IPV4: &str = "
            24000180090001006d6574610000000014000280080002000000000f0800010000000001
            2c00018008000100636d700020000280080001000000000108000200000000000c0003800500010002000000";
        pub const SOURCE_IPV4: &str = "
            340001800c0001007061796c6f6164002400028008000100000000010800020000000001080003000000000c0800040000000004
            2c00018008000100636d700020000280080001000000000108000200000000000c000380080001000a090002";
        pub const NOT_TO_24: &str = "
            340001800c0001007061796c6f616400240002800800010000000001080002000000000108000300000000100800040000000003
            2c00018008000100636d700020000280080001000000000108000200000000010c000380070001000a090000";
        pub const MASQUERADE: &str = "14000180090001006d6173710000000004000280";
        pub const TO_MULTICAST: &str = "
            340001800c0001007061796c6f616400240002800800010000000001080002000000000108000300000000100800040000000004
            440001800c0001006269747769736500340002800800010000000001080002000000000108000300000000040c00048008000100f00000000c0005800800010000000000
            2c00018008000100636d700020000280080001000000000108000200000000000c00038008000100e0000000";
        pub const RETURN: &str = "300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c00028008000100fffffffb";
        pub const GOTO: &str = "400001800e000100696d6d6564696174650000002c0002800800010000000000200002801c00028008000100fffffffc100002006d6173715f636865636b7300";
        pub const NFPROTO_IPV6: &str = "
            24000180090001006d6574610000000014000280080002000000000f0800010000000001
            2c00018008000100636d700020000280080001000000000108000200000000000c000380050001000a000000";
        pub const SOURCE_IPV6: &str = "
            340001800c0001007061796c6f616400240002800800010000000001080002000000000108000300000000080800040000000010
            3800018008000100636d70002c000280080001000000000108000200000000001800038014000100fd000000000000000000000000000002";
        pub const NOT_TO_63: &str = "
            340001800c0001007061796c6f616400240002800800010000000001080002000000000108000300000000180800040000000010
            5c0001800c00010062697477697365004c0002800800010000000001080002000000000108000300000000101800048014000100fffffffffffffffe0000000000000000180005801400010000000000000000000000000000000000
            3800018008000100636d70002c000280080001000000000108000200000000011800038014000100fd000000000000000000000000000000";
        pub const TCP_8080: &str = "
            24000180090001006d657461000000001400028008000200000000100800010000000001
            2c00018008000100636d700020000280080001000000000108000200000000000c0003800500010006000000
            340001800c0001007061796c6f616400240002800800010000000001080002000000000208000300000000020800040000000002
            2c00018008000100636d700020000280080001000000000108000200000000000c000380060001001f900000";
        pub const DNAT: &str = "
            2c0001800e000100696d6d6564696174650000001800028008000100000000010c000280080001000a090002
            2c0001800e000100696d6d6564696174650000001800028008000100000000020c0002800600010000500000
            38000180080001006e6174002c00028008000100000000010800020000000002080003000000000108000500000000020800070000000002";
        pub const DNAT_IPV6: &str = "
            380001800e000100696d6d6564696174650000002400028008000100000000011800028014000100fd000000000000000000000000000002
            2c0001800e000100696d6d6564696174650000001800028008000100000000020c0002800600010000500000
            38000180080001006e6174002c0002800800010000000001080002000000000a080003000000000108000500000000020800070000000002";
        pub const LOCAL_DESTINATION: &str = "
            2800018008000100666962001c000280080003000000000208000200000000030800010000000001
            2c00018008000100636d700020000280080001000000000108000200000000000c0003800800010002000000";
        pub const TRANSLATED: &str = "
            2000018007000100637400001400028008000200000000020800010000000001
            440001800c0001006269747769736500340002800800010000000001080002000000000108000300000000040c00048008000100200000000c0005800800010000000000
            2c00018008000100636d700020000280080001000000000108000200000000010c0003800800010000000000";
        pub const NOT_FROM_ETH0: &str = "
            24000180090001006d657461000000001400028008000200000000060800010000000001
            3800018008000100636d70002c00028008000100000000010800020000000001180003801400010065746830000000000000000000000000";
        pub const NOT_MARKED: &str = "
            24000180090001006d657461000000001400028008000200000000030800010000000001
            2c00018008000100636d700020000280080001000000000108000200000000010c0003800800010010000000";
        pub const ETHER_SOURCE: &str = "
            340001800c0001007061796c6f616400240002800800010000000001080002000000000008000300000000060800040000000006
            3000018008000100636d70002400028008000100000000010800020000000000100003800a0001000200000000010000";
        pub const DROP: &str = "300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c0002800800010000000000";
        pub const SOURCE_OF_IPV4: &str = "
            340001800c0001007061796c6f6164002400028008000100000000010800020000000001080003000000000c0800040000000004";
        /// Without the number of the set in that transaction.
        pub const IN_S4: &str =
            "240001800b0001006c6f6f6b757000001400028008000200000000010700010073340000";
        pub const ESTABLISHED: &str = "
            2000018007000100637400001400028008000200000000000800010000000001
            440001800c000100626974776973650034000280080001000000000108000200000000010800030000000004
            0c00048008000100060000000c0005800800010000000000
            2c00018008000100636d700020000280080001000000000108000200000000010c0003800800010000000000";
        pub const ACCEPT: &str = "300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c0002800800010000000001";
        pub const JUMP: &str = "400001800e000100696d6d6564696174650000002c0002800800010000000000200002801c00028008000100fffffffd0e000200686f7374706f727473000000";
    }

    fn hex(statements: &[Statement], family: Family) -> String {
        use std::fmt::Write;
        let bytes = encode(family, statements, 0);
        assert_eq!(
            decode(family, &bytes).as_deref(),
            Some(statements),
            "the way back"
        );
        let port = statements.iter().find_map(|statement| match statement {
            Statement::Port { port, .. } => Some(*port),
            _ => None,
        });
        assert_eq!(destination_port(&bytes), port);
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    fn address(end: End, is: bool, net: &str) -> Statement {
        let net = net.parse().unwrap();
        Statement::Address { end, is, net }
    }

    #[test]
    fn expressions_are_those_of_nft() {
        use End::{Destination, Source};
        use captured as c;
        let dnat = |to: &str| Statement::Dnat {
            to: to.parse().unwrap(),
            port: 80,
        };
        let tcp = Statement::Port {
            protocol: Protocol::Tcp,
            port: 8080,
        };
        for (family, statements, captured) in [
            (
                Family::Inet,
                vec![
                    address(Source, true, "10.9.0.2/32"),
                    address(Destination, false, "10.9.0.0/24"),
                    Statement::Masquerade,
                ],
                [c::NFPROTO_IPV4, c::SOURCE_IPV4, c::NOT_TO_24, c::MASQUERADE].concat(),
            ),
            (
                Family::Inet,
                vec![
                    address(Source, true, "fd00::2/128"),
                    address(Destination, false, "fd00::/63"),
                    Statement::Masquerade,
                ],
                [c::NFPROTO_IPV6, c::SOURCE_IPV6, c::NOT_TO_63, c::MASQUERADE].concat(),
            ),
            (
                Family::Inet,
                vec![address(Destination, true, "224.0.0.0/4"), Statement::Return],
                [c::NFPROTO_IPV4, c::TO_MULTICAST, c::RETURN].concat(),
            ),
            (
                Family::Inet,
                vec![Statement::Goto("masq_checks".into())],
                c::GOTO.into(),
            ),
            (
                Family::Ip,
                vec![tcp.clone(), dnat("10.9.0.2")],
                [c::TCP_8080, c::DNAT].concat(),
            ),
            (
                Family::Ip6,
                vec![tcp, dnat("fd00::2")],
                [c::TCP_8080, c::DNAT_IPV6].concat(),
            ),
            (
                Family::Ip6,
                vec![
                    Statement::LocalDestination,
                    Statement::Jump("hostports".into()),
                ],
                [c::LOCAL_DESTINATION, c::JUMP].concat(),
            ),
            (
                Family::Ip,
                vec![Statement::Translated, Statement::Masquerade],
                [c::TRANSLATED, c::MASQUERADE].concat(),
            ),
            (
                Family::Ip,
                vec![
                    Statement::Interface {
                        end: Source,
                        is: false,
                        name: "eth0".into(),
                    },
                    Statement::Mark {
                        is: false,
                        mark: 16,
                    },
                ],
                [c::NOT_FROM_ETH0, c::NOT_MARKED].concat(),
            ),
            (
                Family::Bridge,
                vec![
                    Statement::EtherSource(Mac([2, 0, 0, 0, 0, 1])),
                    Statement::Drop,
                ],
                [c::ETHER_SOURCE, c::DROP].concat(),
            ),
        ] {
            let captured: String = captured.split_whitespace().collect();
            assert_eq!(hex(&statements, family), captured, "{statements:?}");
        }
    }

    #[test]
    fn so_are_those_about_sets_and_connections() {
        use captured as c;
        let statements = [
            Statement::InSet {
                end: End::Source,
                family: Family::Ip,
                set: "s4".into(),
            },
            Statement::Established,
            Statement::Accept,
        ];
        let captured = [
            c::NFPROTO_IPV4,
            c::SOURCE_OF_IPV4,
            c::IN_S4,
            c::ESTABLISHED,
            c::ACCEPT,
        ];
        let captured: String = captured.concat().split_whitespace().collect();
        assert_eq!(hex(&statements, Family::Inet), captured);
    }

    /// Found by fuzzing: rules of somebody else's that would change on the way back.
    #[test]
    fn what_we_would_not_write_is_not_understood() {
        let bytes = |text: &str| -> Vec<u8> {
            let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
            let pairs = digits
                .chunks(2)
                .map(|pair| std::str::from_utf8(pair).unwrap());
            pairs
                .map(|pair| u8::from_str_radix(pair, 16).unwrap())
                .collect()
        };
        for (captured, change) in [
            // 224.0.0.1/4
            (
                captured::TO_MULTICAST,
                ("08000100e0000000", "08000100e0000001"),
            ),
            // A name that is longer than a register.
            (
                captured::NOT_FROM_ETH0,
                (
                    "3800018008000100636d70002c0002800800010000000001080002000000000118000380140001006574683000",
                    "3c00018008000100636d700030000280080001000000000108000200000000011c0003801800010065746830ff00000000",
                ),
            ),
        ] {
            let captured: String = captured.split_whitespace().collect();
            assert!(decode(Family::Ip, &bytes(&captured)).is_some());
            let changed = captured.replace(change.0, change.1);
            assert_ne!(captured, changed);
            assert_eq!(decode(Family::Ip, &bytes(&changed)), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn every_prefix_survives(
            v4: u32, v6: u128, length in 0_u8..=128, is: bool, source: bool,
        ) {
            let end = if source { End::Source } else { End::Destination };
            let v4 = IpNet::new(std::net::Ipv4Addr::from(v4).into(), length / 4).unwrap().trunc();
            let v6 = IpNet::new(std::net::Ipv6Addr::from(v6).into(), length).unwrap().trunc();
            for (family, net) in [
                (Family::Ip, v4), (Family::Inet, v4), (Family::Ip6, v6), (Family::Inet, v6),
            ] {
                // Compares inside.
                hex(&[Statement::Address { end, is, net }], family);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            drop(decode(Family::Ip, &bytes));
            let _port: Option<u16> = destination_port(&bytes);
        }
    }
}
