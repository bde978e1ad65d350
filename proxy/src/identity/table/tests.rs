use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const HEADING: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
/// 127.0.0.1:51234 → 10.200.0.1:3128, from a live kernel.
const CLIENT: &str = "   3: 0100007F:C822 0100C80A:0C38 01 00000000:00000000 00:00000000 00000000  1000        0 80412 1 0000000000000000 20 4 30 10 -1\n";

fn tuple(local: &str, remote: &str) -> Tuple {
    Tuple::new(local.parse().unwrap(), remote.parse().unwrap())
}

fn read(table: &str, sought: Tuple) -> Reading {
    let mut reading = Reading::new([sought]);
    reading.feed(table.as_bytes());
    reading.end_of_table();
    reading
}

#[test]
#[cfg(target_endian = "little")]
fn a_v4_client_is_found_by_its_full_tuple_only() {
    let table = format!("{HEADING}{CLIENT}");
    let ours = tuple("127.0.0.1:51234", "10.200.0.1:3128");
    let reading = read(&table, ours);
    assert_eq!(reading.sighting(&ours), Sighting::Socket { inode: 80412, uid: 1000 });
    assert_eq!((reading.rows(), reading.malformed()), (1, 0));
    for other in [
        tuple("127.0.0.1:51235", "10.200.0.1:3128"),
        tuple("127.0.0.1:51234", "10.200.0.1:3129"),
        tuple("127.0.0.2:51234", "10.200.0.1:3128"),
        tuple("127.0.0.1:51234", "10.200.0.2:3128"),
        tuple("10.200.0.1:3128", "127.0.0.1:51234"),
    ] {
        assert_eq!(read(&table, other).sighting(&other), Sighting::Unseen, "{other:?}");
    }
}

#[test]
#[cfg(target_endian = "little")]
fn a_dual_stack_client_is_found_whichever_way_the_addresses_are_spelt() {
    let row = "   0: 0000000000000000FFFF00000100007F:C822 0000000000000000FFFF00000100C80A:0C38 01 00000000:00000000 00:00000000 00000000     0        0 7 1 0 20 0 0 10 -1\n";
    for sought in [
        tuple("127.0.0.1:51234", "10.200.0.1:3128"),
        tuple("[::ffff:127.0.0.1]:51234", "10.200.0.1:3128"),
        tuple("[::ffff:127.0.0.1]:51234", "[::ffff:10.200.0.1]:3128"),
    ] {
        assert_eq!(read(row, sought).sighting(&sought), Sighting::Socket { inode: 7, uid: 0 });
        assert!(matches!(read(CLIENT, sought).sighting(&sought), Sighting::Socket { .. }));
    }
}

#[test]
#[cfg(target_endian = "little")]
fn a_v6_client_is_found() {
    let row = "   0: B80D0120000000000000000001000000:C822 B80D0120000000000000000002000000:0C38 08 00000000:00000000 00:00000000 00000000     0        0 9 1 0 20 0 0 10 -1\n";
    let sought = tuple("[2001:db8::1]:51234", "[2001:db8::2]:3128");
    assert_eq!(read(row, sought).sighting(&sought), Sighting::Socket { inode: 9, uid: 0 });
}

#[test]
#[cfg(target_endian = "little")]
fn clients_behind_50_000_rows_of_either_table_are_found_in_one_reading() {
    const ROWS: u32 = 50_000;
    let tail = "00000000:00000000 00:00000000 00000000     0        0";
    let (mut v4, mut v6) = (HEADING.to_owned(), HEADING.to_owned());
    for row in 0..ROWS {
        let (host, port, inode) = (row & 0xff, 1024 + row % ROWS, row + 1);
        writeln!(v4, "{row}: {host:02X}00000A:{port:04X} 0100C80A:0C38 01 {tail} {inode} 1").unwrap();
        let host = format!("B80D01200000000000000000{host:02X}000000");
        let proxy = "B80D0120000000000000000002000000";
        writeln!(v6, "{row}: {host}:{port:04X} {proxy}:0C38 01 {tail} {inode} 1").unwrap();
    }
    let sought: Vec<(Tuple, u64)> = [0, 1, ROWS / 2, ROWS - 1]
        .into_iter()
        .flat_map(|row| {
            let (host, port, inode) = (row & 0xff, 1024 + row, u64::from(row + 1));
            let old = tuple(&format!("10.0.0.{host}:{port}"), "10.200.0.1:3128");
            let new = tuple(&format!("[2001:db8::{host:x}]:{port}"), "[2001:db8::2]:3128");
            [(old, inode), (new, inode)]
        })
        .collect();
    let mut reading = Reading::new(sought.iter().map(|&(tuple, _)| tuple));
    for table in [&v4, &v6] {
        for piece in table.as_bytes().chunks(4093) {
            reading.feed(piece);
        }
        reading.end_of_table();
    }
    for (tuple, inode) in sought {
        assert_eq!(reading.sighting(&tuple), Sighting::Socket { inode, uid: 0 }, "{tuple:?}");
    }
    assert!(reading.is_complete());
    assert_eq!(reading.malformed(), 0);
}

#[test]
fn a_socket_without_an_owner_is_remembered_and_yields_to_one_with() {
    let sought = tuple("127.0.0.1:51234", "10.200.0.1:3128");
    let orphan = CLIENT.replace("80412", "0").replace(" 01 ", " 06 ");
    assert_eq!(read(&orphan, sought).sighting(&sought), Sighting::Orphan);
    assert!(!read(&orphan, sought).is_complete());
    for table in [format!("{orphan}{CLIENT}"), format!("{CLIENT}{orphan}")] {
        assert!(matches!(read(&table, sought).sighting(&sought), Sighting::Socket { inode: 80412, .. }));
    }
}

#[test]
fn every_state_but_listen_is_a_client() {
    let sought = tuple("127.0.0.1:51234", "10.200.0.1:3128");
    for state in 1..=STATE_MAX {
        let table = CLIENT.replace(" 01 ", &format!(" {state:02X} "));
        assert_eq!(read(&table, sought).is_complete(), state != LISTEN, "state {state}");
    }
}

#[test]
fn lines_that_are_no_rows_are_counted_and_skipped() {
    let sought = tuple("127.0.0.1:51234", "10.200.0.1:3128");
    let bad = [
        "\n".to_owned(),
        "   3: 0100007F:C822 0100C80A:0C38 01\n".to_owned(),
        CLIENT.replace("3:", "3"),
        CLIENT.replace("0100007F", "0100007G"),
        CLIENT.replace("0100007F", "00100007F"),
        CLIENT.replace("C822", "+822"),
        CLIENT.replace(" 01 ", " 00 "),
        CLIENT.replace(" 01 ", " 0E "),
        CLIENT.replace("80412", "99999999999999999999"),
        CLIENT.replace("80412", "-1"),
        CLIENT.replace(" 1000 ", " 4294967296 "),
        format!("{}\n", "x".repeat(ROW_BYTES_MAX + 1)),
    ];
    let reading = read(&format!("{HEADING}{}{CLIENT}", bad.concat()), sought);
    assert_eq!(reading.malformed() as usize, bad.len());
    assert_eq!(reading.rows(), 1);
    assert!(reading.is_complete());
}

#[test]
fn fifty_thousand_rows_serve_a_hundred_lookups_in_one_reading() {
    let mut table = HEADING.to_owned();
    let address = |last: u32| u32::from_ne_bytes([10, 1, (last >> 8) as u8, last as u8]);
    for row in 0..50_000_u32 {
        let (client, port, inode) = (address(row >> 8), row & 0xFFFF, row + 1);
        writeln!(
            table,
            "{row:4}: {client:08X}:{port:04X} {client:08X}:0C38 01 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0"
        )
        .unwrap();
    }
    let sought = (0..100_u32).map(|lookup| lookup * 499).map(|row| {
        let [_, _, third, last] = address(row >> 8).to_ne_bytes();
        let client = Ipv4Addr::new(10, 1, third, last);
        let local = SocketAddr::from((client, (row & 0xFFFF) as u16));
        (row, Tuple::new(local, SocketAddr::from((client, 3128))))
    });
    let mut reading = Reading::new(sought.clone().map(|(_, tuple)| tuple));
    reading.feed(table.as_bytes());
    assert_eq!(reading.rows(), 50_000);
    for (row, tuple) in sought {
        assert_eq!(reading.sighting(&tuple), Sighting::Socket { inode: u64::from(row) + 1, uid: 1000 });
    }
}

#[test]
fn a_last_row_without_a_newline_counts() {
    let sought = tuple("127.0.0.1:51234", "10.200.0.1:3128");
    assert!(read(CLIENT.trim_end(), sought).is_complete());
}

/// Half of the bytes are what tables are made of.
fn table_like(byte: u8) -> u8 {
    if byte < 128 { b"\n :0FA1x"[usize::from(byte % 8)] } else { byte }
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_read_like_the_whole(
        bytes in proptest::collection::vec(any::<u8>().prop_map(table_like), 0..1_200),
        piece in 1_usize..700,
    ) {
        let sought = tuple("127.0.0.1:51234", "10.200.0.1:3128");
        let table = [CLIENT.as_bytes(), &bytes, b"\n", CLIENT.as_bytes()].concat();
        let mut whole = Reading::new([sought]);
        whole.feed(&table);
        let mut pieces = Reading::new([sought]);
        table.chunks(piece).for_each(|piece| pieces.feed(piece));
        prop_assert_eq!(whole.rows(), pieces.rows());
        prop_assert_eq!(whole.malformed(), pieces.malformed());
        prop_assert!(whole.is_complete() && pieces.is_complete());
    }

    #[test]
    fn a_row_the_kernel_prints_is_read_back(local: [u8; 4], port: u16, uid: u32, inode: u64, state in 1..=STATE_MAX) {
        let line = format!(
            "   1: {:08X}:{port:04X} 0100C80A:0C38 {state:02X} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1",
            u32::from_ne_bytes(local)
        );
        let Line::Row(row) = parse(line.as_bytes()) else { panic!("{line}") };
        prop_assert_eq!(row.tuple.local(), (IpAddr::from(local).to_canonical(), port));
        prop_assert_eq!((row.uid, row.inode, row.state), (uid, inode, state));
    }
}
