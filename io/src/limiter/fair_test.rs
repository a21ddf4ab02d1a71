use proptest::prelude::*;

use super::*;

/// Who goes `nth` in the first queue, from 0.
fn nth(fair: &Fair<usize>, nth: usize) -> Option<usize> {
    let mut place = Place::default();
    (0..=nth).map(|_| fair.next(&mut place, [true, false])).last()?.map(|(item, _)| *item)
}

/// Serves whoever is next, `count` times, each flow's requests being of its length; gives how many each had.
fn serve(fair: &mut Fair<usize>, lengths: &[u128], count: usize) -> Vec<u64> {
    let mut had = vec![0; lengths.len()];
    for _ in 0..count {
        let next = nth(fair, 0).expect("somebody waits");
        fair.served(next, lengths[next]);
        had[next] += 1;
    }
    had
}

fn flows(weights: &[u32]) -> Fair<usize> {
    let mut fair = Fair::default();
    for (index, weight) in weights.iter().enumerate() {
        assert_eq!(fair.join(*weight, index), index);
        fair.arrive(index, 0);
    }
    fair
}

#[test]
fn shares_are_as_the_weights() {
    let mut fair = flows(&[1, 2, 7]);
    assert_eq!(serve(&mut fair, &[1 << 30; 3], 1_000), [100, 200, 700]);
}

#[test]
fn shares_are_of_lengths_and_not_of_requests() {
    let mut fair = flows(&[100, 100]);
    assert_eq!(serve(&mut fair, &[1 << 30, 4 << 30], 1_000), [800, 200]);
}

#[test]
fn equals_go_in_the_order_of_arrival() {
    let fair = flows(&[5, 5, 5, 5]);
    assert_eq!([0, 1, 2, 3].map(|place| nth(&fair, place).unwrap()), [0, 1, 2, 3]);
    assert!(nth(&fair, 4).is_none());
}

#[test]
fn weights_are_brought_into_range() {
    let mut fair = flows(&[0, u32::MAX]);
    assert_eq!(serve(&mut fair, &[1 << 30; 2], 10_001), [1, 10_000]);
    fair.weigh(0, 10_000);
    let had = serve(&mut fair, &[1 << 30; 2], 10_000);
    assert!(had[0].abs_diff(had[1]) <= 2, "{had:?}");
}

#[test]
fn the_idle_save_up_no_more_than_the_credit() {
    let mut fair = flows(&[100, 100]);
    fair.depart(1, 0);
    let millisecond = 1_000_000 << 20;
    serve(&mut fair, &[millisecond; 2], 10_000);
    fair.arrive(1, 0);
    // Ten milliseconds at most before it is even.
    assert!((9..=11).contains(&serve(&mut fair, &[millisecond; 2], 11)[1]));
    let had = serve(&mut fair, &[millisecond; 2], 1_000);
    assert!(had[0].abs_diff(had[1]) <= 2, "{had:?}");
}

#[test]
fn sec_02_nobody_gains_by_leaving_and_joining() {
    let mut fair = flows(&[100, 100]);
    let length = 1_000_000 << 20;
    serve(&mut fair, &[length; 2], 1_000);
    let mut had = [0_u64; 2];
    for _ in 0..1_000 {
        let next = nth(&fair, 0).unwrap();
        fair.served(next, length);
        had[next] += 1;
        if next == 1 {
            fair.leave(1);
            assert_eq!(fair.join(100, 1), 1);
            fair.arrive(1, 0);
        }
    }
    assert!(had[0].abs_diff(had[1]) <= 2, "{had:?}");
}

#[test]
fn sec_02_what_those_who_left_were_ahead_by_is_taken_over_by_weight_and_once() {
    let mut fair = flows(&[100, 100, 100]);
    fair.served(0, 1 << 40);
    fair.served(1, 1 << 30);
    (0..2).for_each(|flow| fair.leave(flow));
    let ahead = [200, 100, 100].map(|weight| {
        let flow = fair.join(weight, 0);
        fair.flows[flow].start - fair.clock
    });
    assert_eq!(ahead, [share(1 << 40, 200), share(1 << 30, 100), 0]);
    assert!(fair.left.is_empty());
}

#[test]
fn who_asks_again_after_a_moment_has_its_whole_share() {
    // One of weight 9 that is away while the other has a turn, after each of its own.
    let mut fair = flows(&[900, 100]);
    let mut had = [0_u64; 2];
    let length = 100_000 << 20;
    while had[0] + had[1] < 10_000 {
        let next = nth(&fair, 0).unwrap();
        fair.served(next, length);
        had[next] += 1;
        fair.depart(next, 0);
        if let Some(other) = nth(&fair, 0).filter(|_| had[0] % 20 == 0) {
            fair.served(other, length);
            had[other] += 1;
        }
        fair.arrive(next, 0);
    }
    assert!(had[0].abs_diff(9_000) <= 60, "{had:?}");
}

#[test]
fn what_is_undone_was_not_served() {
    let mut fair = flows(&[3, 4]);
    fair.served(0, 1 << 40);
    let before = fair.flows[1].start;
    fair.served(1, 12_345);
    fair.undo(1, 12_345);
    assert_eq!(fair.flows[1].start, before);
    fair.depart(1, 0);
    fair.undo(1, u128::MAX);
    assert_eq!((fair.flows[1].start, fair.order[0].len()), (0, 1));
}

#[test]
fn flows_come_and_go() {
    let mut fair = flows(&[1, 1, 1]);
    fair.leave(1);
    fair.served(1, 5);
    fair.arrive(1, 0);
    fair.depart(1, 0);
    assert_eq!([0, 1].map(|place| nth(&fair, place).unwrap()), [0, 2]);
    fair.leave(0);
    fair.leave(2);
    assert!(fair.is_idle(0));
}

proptest! {
    /// The bound of start-time fair queuing: of two flows that always wait, what each had, by weight, differs by
    /// at most one request of each.
    #[test]
    fn nobody_is_ahead_by_more_than_a_request(
        flows in prop::collection::vec((1_u32..=10_000, 1_u64..1 << 40), 2..8),
        count in 1_usize..300,
    ) {
        let weights: Vec<u32> = flows.iter().map(|flow| flow.0).collect();
        let lengths: Vec<u128> = flows.iter().map(|flow| u128::from(flow.1) << 20).collect();
        let mut fair = self::flows(&weights);
        let had = serve(&mut fair, &lengths, count);
        for (a, &(weight_a, _)) in flows.iter().enumerate() {
            for (b, &(weight_b, _)) in flows.iter().enumerate() {
                // In cross products, so that nothing is rounded but what the queue itself rounds.
                let [share_a, share_b] = [(a, weight_b), (b, weight_a)].map(|(flow, w)| u128::from(had[flow]) * lengths[flow] * u128::from(w));
                let bound = lengths[a] * u128::from(weight_b) + lengths[b] * u128::from(weight_a);
                let rounding = u128::from(weight_a) * u128::from(weight_b) * count as u128;
                prop_assert!(share_a.abs_diff(share_b) <= bound + rounding);
            }
        }
    }

    /// Whatever is done, the order is that of the start times, and holds exactly those who wait.
    #[test]
    fn the_order_holds_who_waits(
        steps in prop::collection::vec((0_u8..6, 0_usize..5, 0_usize..2, any::<u128>()), 0..200),
    ) {
        let mut fair = self::flows(&[1, 10, 100, 1_000]);
        for (step, flow, queue, length) in steps {
            match step {
                0 => fair.arrive(flow, queue),
                1 => fair.depart(flow, queue),
                2 => fair.served(flow, length),
                3 => fair.undo(flow, length),
                4 => fair.weigh(flow, u32::try_from(length % 20_000).unwrap()),
                _ => fair.leave(flow),
            }
            if !fair.flows.contains(flow) {
                fair.join(7, flow);
            }
            let waiting = |queue: usize| {
                let waits = |(number, flow): (usize, &Flow<usize>)| flow.waits[queue].then(|| flow.turn(number));
                let mut turns: Vec<Turn> = fair.flows.iter().filter_map(waits).collect();
                turns.sort_unstable();
                turns
            };
            prop_assert_eq!(&fair.order, &[waiting(0), waiting(1)]);
            // Each once, first those who are furthest behind, whatever queues they wait in.
            let mut place = Place::default();
            let passed: Vec<_> = std::iter::from_fn(|| fair.next(&mut place, [true, true]))
                .map(|(flow, waits)| (fair.flows[*flow].turn(*flow), waits))
                .collect();
            prop_assert!(passed.is_sorted());
            prop_assert!(passed.iter().all(|(turn, waits)| fair.flows[turn.flow].waits == *waits));
            let all = fair.flows.iter().filter(|(_, flow)| flow.waits != [false; QUEUES]).count();
            prop_assert_eq!(passed.len(), all);
        }
    }
}
