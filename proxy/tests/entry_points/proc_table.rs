//! What holds for any bytes in the place of `/proc/net/tcp{,6}`.

use std::net::{Ipv6Addr, SocketAddr};

use sluice::identity::table::{Line, Reading, Sighting, Tuple, parse};

/// The first octet says into which pieces the rest comes: read in pieces, the table says what it says as a whole; a
/// connection is found exactly if some row has it; and one that is not there is not found.
pub(crate) fn proc_table(bytes: &[u8]) {
    let Some((&piece, table)) = bytes.split_first() else { return };
    let absent = Tuple::new(nowhere(1), nowhere(2));
    let rows: Vec<_> = table.split(|&byte| byte == b'\n').filter_map(row).collect();
    let sought: Vec<Tuple> = rows.iter().map(|row| row.tuple).chain([absent]).collect();
    let (mut whole, mut pieces) = (Reading::new(sought.clone()), Reading::new(sought.clone()));
    whole.feed(table);
    whole.end_of_table();
    table.chunks(usize::from(piece).max(1)).for_each(|piece| pieces.feed(piece));
    pieces.end_of_table();
    assert_eq!((whole.rows(), whole.malformed()), (pieces.rows(), pieces.malformed()));
    assert_eq!(whole.rows() as usize, rows.len());
    for tuple in &sought {
        assert_eq!(whole.sighting(tuple), pieces.sighting(tuple));
    }
    for row in &rows {
        let owned = |other: &&sluice::identity::table::Row| {
            other.tuple == row.tuple && other.inode != 0 && other.state != 10
        };
        let last = rows.iter().rfind(owned);
        match whole.sighting(&row.tuple) {
            Sighting::Socket { inode, uid } => {
                assert_eq!(last.map(|row| (row.inode, row.uid)), Some((inode, uid)));
            }

            Sighting::Orphan | Sighting::Unseen => assert!(last.is_none()),
        }
    }
    if !rows.iter().any(|row| row.tuple == absent) {
        assert_eq!(whole.sighting(&absent), Sighting::Unseen);
    }
}

fn row(line: &[u8]) -> Option<sluice::identity::table::Row> {
    match parse(line) {
        Line::Row(row) if line.len() <= sluice::identity::table::ROW_BYTES_MAX => Some(row),
        _ => None,
    }
}

fn nowhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), port))
}
