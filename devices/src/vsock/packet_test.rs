use super::*;

#[test]
fn fields_are_where_the_specification_has_them() {
    let bytes: [u8; HEADER] = std::array::from_fn(|n| n as u8);
    let header = Header::parse(&bytes);
    assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
    assert_eq!(header.dst_cid, 0x0F0E_0D0C_0B0A_0908);
    assert_eq!((header.src_port, header.dst_port, header.len), (0x1312_1110, 0x1716_1514, 0x1B1A_1918));
    assert_eq!((header.kind, header.op, header.flags), (0x1D1C, 0x1F1E, 0x2322_2120));
    assert_eq!((header.buf_alloc, header.fwd_cnt), (0x2726_2524, 0x2B2A_2928));
    assert_eq!(header.bytes(), bytes);
}

#[test]
fn operations_have_their_numbers() {
    let numbers = Op::ALL.map(Op::number);
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    for op in Op::ALL {
        assert_eq!(Op::from_number(op.number()), Some(op));
    }
    assert_eq!([0, 8, u16::MAX].map(Op::from_number), [None; 3]);
}

#[test]
fn a_reset_goes_back_where_the_packet_came_from() {
    let header =
        Header { src_cid: 3, dst_cid: 2, src_port: 10, dst_port: 20, len: 5, kind: 9, ..Header::default() };
    let expected =
        Header { src_cid: 2, dst_cid: 3, src_port: 20, dst_port: 10, kind: 9, op: 3, ..Header::default() };
    assert_eq!(header.reset(), expected);
}
