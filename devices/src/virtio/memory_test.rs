use super::*;

fn identity(queue_sizes: Vec<u16>) -> Identity {
    Identity { id: "disk0".into(), device_type: 2, features: 0, queue_sizes }
}

#[test]
fn a_longer_chain_takes_more_and_the_shortest_has_the_shortest_list() {
    let memory = RequestMemory::new(1000);
    assert_eq!(memory.of_chain(1), memory.of_chain(4));
    assert_eq!(memory.of_chain(4), 1000 + 4 * 64);
    assert_eq!(memory.of_chain(256), 1000 + 256 * 64);
}

#[test]
fn each_queue_has_its_longest_request_reserved_and_the_others_come_on_top() {
    let request = RequestMemory::new(1000);
    let one = DeviceMemory::of_requests(&identity(vec![8]), request);
    let longest = request.of_chain(8);
    assert_eq!(one.further, 7 * longest);
    assert!(one.reserved > longest && one.reserved < 2 * longest, "{one:?}");
    let two = DeviceMemory::of_requests(&identity(vec![8, 8]), request);
    assert_eq!(two.further, 14 * longest);
    assert!(two.reserved > 2 * longest);
    assert_eq!(one.and(5, 7), DeviceMemory { reserved: one.reserved + 5, further: one.further + 7 });
}

#[test]
fn chains_that_are_served_in_order_take_nothing_besides() {
    assert_eq!(DeviceMemory::of_chains(&identity(vec![64, 64])).further, 0);
}
