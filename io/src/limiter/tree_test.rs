use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Mutex;
use std::task::Wake;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limiter::{PerUnit, TokenBucket};

const MS: u64 = 1_000_000;

fn at(nanos: u64) -> MonoTime {
    MonoTime::from_nanos(nanos)
}

fn operations(size: u64, refill_ms: u64) -> PerUnit<TokenBucket> {
    PerUnit { operations: Some(TokenBucket::new(size, Duration::from_millis(refill_ms))), bytes: None }
}

fn bytes(size: u64, refill_ms: u64) -> PerUnit<TokenBucket> {
    PerUnit { operations: None, bytes: Some(TokenBucket::new(size, Duration::from_millis(refill_ms))) }
}

fn total(total: PerUnit<TokenBucket>) -> Limits {
    Limits { total, ..Limits::default() }
}

fn tree(limits: &Limits) -> Tree {
    Tree::new(limits, at(0)).unwrap()
}

/// A guest that asks for the same again and again.
struct Guest {
    member: usize,
    cost: Cost,
    /// From being granted to asking again.
    pause: u64,
}

/// Notes which guest was woken.
struct Bell {
    guest: usize,
    woken: Arc<Mutex<Vec<usize>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap().push(self.guest);
    }
}

/// Time that passes without a wait: a shard that is woken, or whose timer goes off, looks so much later.
const LATENCY: u64 = 60_000;

/// Runs guests against a tree; gives what was granted: to whom, and as of when.
fn run(tree: &mut Tree, guests: &[Guest], until: u64) -> Vec<(usize, u64)> {
    let (woken, mut granted) = (Arc::<Mutex<Vec<usize>>>::default(), Vec::new());
    let wakers: Vec<Waker> = (0..guests.len())
        .map(|guest| Waker::from(Arc::new(Bell { guest, woken: Arc::clone(&woken) })))
        .collect();
    // When each asks next; `None` while it waits.
    let mut asks: Vec<Option<u64>> = vec![Some(0); guests.len()];
    let mut events: BinaryHeap<Reverse<(u64, usize)>> =
        (0..guests.len()).map(|guest| Reverse((0, guest))).collect();
    while let Some(Reverse((now, index))) = events.pop().filter(|Reverse((now, _))| *now <= until) {
        let Guest { member, cost, pause } = guests[index];
        match asks[index] {
            Some(then) if now < then => continue, // woken for what it has already
            Some(_) => tree.enter(member, cost, at(now)),
            None => {}
        }
        asks[index] = None;
        match tree.poll(member, cost.lane(), at(now), &wakers[index]) {
            Answer::Granted(instant) => {
                assert!(instant <= at(now));
                tree.confirm(member, cost, at(now));
                granted.push((index, instant.as_nanos()));
                asks[index] = Some(now + pause);
                events.push(Reverse((now + pause, index)));
            }
            Answer::Wait(Some(alarm)) => events.push(Reverse((alarm.as_nanos().max(now) + LATENCY, index))),
            Answer::Wait(None) => {}
        }
        while let Some(waker) = tree.next_woken() {
            waker.wake();
        }
        events.extend(woken.lock().unwrap().drain(..).map(|guest| Reverse((now + LATENCY, guest))));
    }
    granted
}

/// How many requests each guest had after `from`.
fn counts(granted: &[(usize, u64)], guests: usize, from: u64) -> Vec<u64> {
    let mut counts = vec![0; guests];
    granted.iter().filter(|(_, instant)| *instant > from).for_each(|(guest, _)| counts[*guest] += 1);
    counts
}

fn guests(tree: &mut Tree, node: usize, weights: &[u32], cost: Cost) -> Vec<Guest> {
    weights.iter().map(|weight| Guest { member: tree.join(node, *weight), cost, pause: 20_000 }).collect()
}

/// Share error, in thousandths, of counts that should be as the weights.
fn error(counts: &[u64], weights: &[u32]) -> u64 {
    let (sum, whole) = (counts.iter().sum::<u64>(), weights.iter().map(|w| u64::from(*w)).sum::<u64>());
    let of = |(count, weight): (&u64, &u32)| {
        let due = sum * u64::from(*weight) / whole;
        count.abs_diff(due) * 1_000 / due
    };
    counts.iter().zip(weights).map(of).max().unwrap()
}

#[test]
fn the_rate_is_exact_however_late_everybody_wakes() {
    // A bucket of 1 ms, from a queue that looks 60 µs late.
    for (size, refill, vms) in [(1, 1, 1), (1, 1, 5), (10, 1, 3), (50, 10, 64), (100, 100, 2)] {
        let mut tree = tree(&total(operations(size, refill)));
        let all = guests(&mut tree, ROOT, &vec![100; vms], Cost::read(512));
        let granted = run(&mut tree, &all, 1_000 * MS);
        let had = counts(&granted, vms, 200 * MS).iter().sum::<u64>();
        let due = size * 800 / refill;
        // The last of a request may be on either side of each end.
        assert!(had.abs_diff(due) <= vms as u64 + 1, "{size} per {refill} ms to {vms}: {had} of {due}");
    }
}

#[test]
fn shares_are_as_the_weights_among_up_to_64() {
    for vms in [2, 3, 8, 64] {
        let equal = vec![100; vms];
        let unequal: Vec<u32> = (1..=vms).map(|n| 100 * u32::try_from(n % 5 + 1).unwrap()).collect();
        for weights in [equal, unequal] {
            let mut tree = tree(&total(operations(100, 10)));
            let all = guests(&mut tree, ROOT, &weights, Cost::write(4096));
            let had = counts(&run(&mut tree, &all, 4_000 * MS), vms, 500 * MS);
            assert!(error(&had, &weights) <= 20, "{vms}: {had:?} by {weights:?}");
        }
    }
}

#[test]
fn shares_are_of_bytes_where_bytes_are_limited() {
    let mut tree = tree(&total(bytes(1 << 20, 10)));
    let mut all = guests(&mut tree, ROOT, &[100, 100, 200], Cost::read(4 << 10));
    all[1].cost = Cost::read(64 << 10);
    let had = counts(&run(&mut tree, &all, 4_000 * MS), 3, 500 * MS);
    assert!(error(&[had[0], had[1] * 16, had[2]], &[100, 100, 200]) <= 20, "{had:?}");
}

#[test]
fn tenants_share_the_host_and_vms_share_a_tenant() {
    let mut tree = tree(&total(operations(100, 10)));
    let small = tree.add(ROOT, 100, &Limits::default(), at(0)).unwrap();
    let large = tree.add(ROOT, 300, &Limits::default(), at(0)).unwrap();
    let mut all = guests(&mut tree, small, &[100; 4], Cost::read(1));
    all.extend(guests(&mut tree, large, &[100, 200], Cost::read(1)));
    let had = counts(&run(&mut tree, &all, 4_000 * MS), 6, 500 * MS);
    assert!(error(&had, &[25, 25, 25, 25, 100, 200]) <= 20, "{had:?}");
}

#[test]
fn what_a_limited_tenant_may_not_have_is_the_others() {
    let mut tree = tree(&total(operations(100, 10)));
    let held = tree.add(ROOT, 100, &total(operations(10, 10)), at(0)).unwrap();
    let free = tree.add(ROOT, 100, &Limits::default(), at(0)).unwrap();
    let mut all = guests(&mut tree, held, &[100; 2], Cost::read(1));
    all.extend(guests(&mut tree, free, &[100; 2], Cost::read(1)));
    let had = counts(&run(&mut tree, &all, 3_000 * MS), 4, 500 * MS);
    assert!(error(&had, &[5, 5, 45, 45]) <= 20, "{had:?}");
}

#[test]
fn one_lane_does_not_wait_for_the_other() {
    let limits = Limits { read: operations(10, 10), write: operations(40, 10), ..Limits::default() };
    let mut tree = tree(&limits);
    let mut all = guests(&mut tree, ROOT, &[100; 2], Cost::read(1));
    let writers: Vec<Guest> = all.iter().map(|guest| Guest { cost: Cost::write(1), ..*guest }).collect();
    all.extend(writers);
    let had = counts(&run(&mut tree, &all, 3_000 * MS), 4, 500 * MS);
    assert!(error(&had, &[1, 1, 4, 4]) <= 20, "{had:?}");
}

#[test]
fn the_large_do_not_starve_beside_the_small() {
    let mut tree = tree(&total(bytes(64 << 10, 10)));
    let mut all = guests(&mut tree, ROOT, &[100; 5], Cost::read(512));
    all[0].cost = Cost::write(1 << 20); // more than the bucket holds
    let had = counts(&run(&mut tree, &all, 8_000 * MS), 5, 0);
    let due = 8_000 / 10 * (64 << 10) / 5 / (1 << 20);
    assert!(had[0].abs_diff(due) <= 2, "{} of {due}", had[0]);
}

/// Everything that a request could have taken.
fn account(tree: &Tree) -> String {
    let of = |(_, node): (usize, &Node)| {
        format!("{:?} {:?} ", node.meters.save(at(0)), [0, 1].map(|queue| node.fair.is_idle(queue)))
    };
    tree.nodes.iter().map(of).collect()
}

fn wait(tree: &mut Tree, member: usize, cost: Cost, now: u64) -> Answer {
    tree.enter(member, cost, at(now));
    tree.poll(member, cost.lane(), at(now), Waker::noop())
}

#[test]
fn a_request_that_goes_away_has_taken_nothing() {
    let mut tree = tree(&total(operations(2, 1_000)));
    let tenant = tree.add(ROOT, 100, &total(bytes(1_000, 1_000)), at(0)).unwrap();
    let (one, two) = (tree.join(tenant, 100), tree.join(tenant, 100));
    let before = account(&tree);
    // Granted, and not taken.
    assert_eq!(wait(&mut tree, one, Cost::read(900), 0), Answer::Granted(at(0)));
    assert_ne!(account(&tree), before);
    // Meanwhile there is not enough for the next one.
    assert!(matches!(wait(&mut tree, two, Cost::read(200), 0), Answer::Wait(Some(_))));
    tree.withdraw(two, Lane::Read, at(0));
    tree.withdraw(one, Lane::Read, at(0));
    assert_eq!(account(&tree), before);
    // Whoever waits has what another gives back.
    assert_eq!(wait(&mut tree, one, Cost::read(900), 0), Answer::Granted(at(0)));
    assert!(matches!(wait(&mut tree, two, Cost::read(200), 0), Answer::Wait(Some(_))));
    tree.withdraw(one, Lane::Read, at(0));
    assert_eq!(tree.poll(two, Lane::Read, at(0), Waker::noop()), Answer::Granted(at(0)));
    tree.confirm(two, Cost::read(200), at(0));
    let stats = tree.stats(tenant);
    assert_eq!((stats.operations.get(), stats.bytes.get(), stats.waiting.get()), (1, 200, 0));
    assert_eq!((stats.throttled.get(), tree.stats(ROOT).operations.get()), (2, 1));
    assert_eq!(stats.tokens(at(0)).total.bytes, Some(800));
}

#[test]
fn what_was_granted_is_exchanged_for_what_it_costs_after_all() {
    let limits = [total(bytes(10_000, 1_000)), total(operations(10, 1_000)), total(operations(0, 0))];
    for (host, tenant) in limits.iter().flat_map(|host| limits.iter().map(move |tenant| (host, tenant))) {
        // One is told what its requests cost before, the other afterwards.
        let [mut before, mut after] = [tree(host), tree(host)];
        let [one, two] = [&mut before, &mut after].map(|tree| {
            let tenant = tree.add(ROOT, 100, tenant, at(0)).unwrap();
            tree.join(tenant, 50)
        });
        for (n, size) in [1_500u64, 64, 0, 7_000].into_iter().enumerate() {
            let (cost, now) = (Cost::read(size), at(n as u64));
            assert!(before.try_admit(one, cost, now, now).is_some());
            assert!(after.try_open(two, CostKind::Read, now, now).is_some());
            after.confirm(two, cost, now);
            assert_eq!(account(&before), account(&after), "{host:?}, {tenant:?}");
        }
        assert_eq!(after.stats(ROOT).bytes.get(), 8_564);
        // What does not come costs nothing.
        let settled = account(&after);
        assert!(after.try_open(two, CostKind::Read, at(3), at(3)).is_some());
        after.withdraw(two, Lane::Read, at(3));
        assert_eq!((account(&after), after.stats(ROOT).operations.get()), (settled, 4));
    }
}

#[test]
fn shares_are_of_what_was_charged_afterwards() {
    let mut tree = tree(&total(bytes(1_000, 10)));
    let all = [200, 100].map(|weight| tree.join(ROOT, weight));
    let mut had = [0u64; 2];
    let mut now = 0;
    all.iter().for_each(|member| tree.enter_open(*member, CostKind::Read, at(0)));
    while had.iter().sum::<u64>() < 3_000_000 {
        now += MS / 10;
        for (index, member) in all.iter().enumerate() {
            if matches!(tree.poll(*member, Lane::Read, at(now), Waker::noop()), Answer::Granted(_)) {
                // Large packets for one, small ones for the other.
                let size = [1_500, 100][index];
                tree.confirm(*member, Cost::read(size), at(now));
                had[index] += size;
                tree.enter_open(*member, CostKind::Read, at(now));
            }
        }
    }
    assert!(error(&had, &[2, 1]) <= 20, "{had:?}");
}

#[test]
fn at_once_or_not_at_all() {
    let mut tree = tree(&total(operations(1, 1_000)));
    let (one, two) = (tree.join(ROOT, 100), tree.join(ROOT, 100));
    assert!(tree.try_admit(one, Cost::read(1), at(0), at(0)).is_some());
    let before = account(&tree);
    assert!(tree.try_admit(two, Cost::read(1), at(0), at(0)).is_none());
    assert_eq!(account(&tree), before);
    // Neither does it pass somebody who waits.
    assert!(matches!(wait(&mut tree, two, Cost::read(1), 0), Answer::Wait(Some(_))));
    assert!(tree.try_admit(one, Cost::write(1), at(500 * MS), at(500 * MS)).is_none());
    assert_eq!(tree.poll(two, Lane::Read, at(1_000 * MS), Waker::noop()), Answer::Granted(at(1_000 * MS)));
}

#[test]
fn the_next_is_told_when_whoever_kept_the_time_goes() {
    let mut tree = tree(&total(operations(1, 1_000)));
    let (one, two) = (tree.join(ROOT, 100), tree.join(ROOT, 100));
    assert!(tree.try_admit(one, Cost::read(1), at(0), at(0)).is_some());
    let woken = Arc::<Mutex<Vec<usize>>>::default();
    let waker = Waker::from(Arc::new(Bell { guest: 2, woken: Arc::clone(&woken) }));
    // The other is first by fairness: the one that was served stands behind it.
    assert_eq!(wait(&mut tree, two, Cost::read(1), 0), Answer::Wait(Some(at(1_000 * MS))));
    tree.enter(one, Cost::read(1), at(0));
    assert_eq!(tree.poll(one, Lane::Read, at(0), &waker), Answer::Wait(None));
    assert!(tree.next_woken().is_none());
    tree.withdraw(two, Lane::Read, at(0));
    tree.next_woken().expect("somebody is to be woken").wake();
    assert_eq!(*woken.lock().unwrap(), [2]);
    assert_eq!(tree.poll(one, Lane::Read, at(0), &waker), Answer::Wait(Some(at(1_000 * MS))));
}

#[test]
fn waiters_go_by_limits_and_weights_that_were_changed() {
    let mut tree = tree(&total(operations(1, 1_000)));
    let member = tree.join(ROOT, 100);
    assert!(tree.try_admit(member, Cost::read(1), at(0), at(0)).is_some());
    let woken = Arc::<Mutex<Vec<usize>>>::default();
    let waker = Waker::from(Arc::new(Bell { guest: 0, woken: Arc::clone(&woken) }));
    tree.enter(member, Cost::read(1), at(0));
    assert_eq!(tree.poll(member, Lane::Read, at(0), &waker), Answer::Wait(Some(at(1_000 * MS))));
    assert!(
        tree.change(
            ROOT,
            &total(PerUnit { operations: None, bytes: Some(TokenBucket::new(1, Duration::MAX)) }),
            at(5)
        )
        .is_err()
    );
    tree.change(ROOT, &total(operations(1, 500)), at(5)).unwrap();
    tree.next_woken().expect("it can go").wake();
    assert_eq!(tree.poll(member, Lane::Read, at(7), &waker), Answer::Granted(at(5)));
    tree.confirm(member, Cost::read(1), at(7));
    assert_eq!(tree.limits(ROOT), total(operations(1, 500)));

    let mut all = guests(&mut tree, ROOT, &[100, 100], Cost::read(1));
    tree.change(ROOT, &total(operations(100, 10)), at(7)).unwrap();
    tree.weigh(all[0].member, 400);
    let had = counts(&run(&mut tree, &all, 2_000 * MS), 2, 100 * MS);
    assert!(error(&had, &[4, 1]) <= 20, "{had:?}");
    // Whoever leaves leaves nothing behind.
    for guest in all.drain(..) {
        tree.withdraw(guest.member, Lane::Read, at(2_000 * MS));
        tree.leave(guest.member);
    }
    assert!([0, 1].iter().all(|queue| tree.nodes[ROOT].fair.is_idle(*queue)));
    assert_eq!(tree.members.len(), 1);
}

#[test]
fn there_are_two_levels() {
    let mut tree = tree(&Limits::default());
    let tenant = tree.add(ROOT, 100, &Limits::default(), at(0)).unwrap();
    assert_eq!(tree.add(tenant, 100, &Limits::default(), at(0)), Err(LimitError::Depth));
    tree.remove(tenant);
    assert_eq!(tree.nodes.len(), 1);
    assert_eq!(tree.add(ROOT, 100, &Limits::default(), at(0)), Ok(tenant));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever guests do, no level gives more than its due, and nobody waits for ever.
    #[test]
    fn sec_02_no_level_gives_more_than_its_due(
        (host, tenants) in (1_u64..50, prop::collection::vec((1_u64..50, 1_u32..1_000), 1..4)),
        asking in prop::collection::vec((0_usize..4, 1_u32..1_000, 1_u64..100, 0_u64..3 * MS, any::<bool>()), 1..12),
    ) {
        let mut tree = tree(&total(bytes(host * 10, 5)));
        let nodes: Vec<usize> = tenants.iter().map(|(size, weight)| tree.add(ROOT, *weight, &total(bytes(size * 10, 5)), at(0)).unwrap()).collect();
        let all: Vec<Guest> = asking.iter().map(|&(tenant, weight, bytes, pause, write)| Guest {
            member: tree.join(nodes[tenant % nodes.len()], weight),
            cost: if write { Cost::write(bytes) } else { Cost::read(bytes) },
            pause,
        }).collect();
        let until = 2_000 * MS;
        let granted = run(&mut tree, &all, until);
        let due = |size: u64| size * 10 + size * 10 * until / (5 * MS);
        let took = |of: &dyn Fn(usize) -> bool| granted.iter().filter(|(guest, _)| of(*guest)).map(|(guest, _)| all[*guest].cost.bytes).sum::<u64>();
        prop_assert!(took(&|_| true) <= due(host) + 100);
        for (index, (size, _)) in tenants.iter().enumerate() {
            prop_assert!(took(&|guest| asking[guest].0 % nodes.len() == index) <= due(*size) + 100);
        }
        let had = counts(&granted, all.len(), 0);
        prop_assert!(tree.nodes.iter().all(|(_, node)| node.stats.waiting.get() >= 0));
        // The smallest share there can be here is worth several requests of the largest size.
        for (guest, had) in had.iter().enumerate() {
            let weights: u32 = asking.iter().map(|asking| asking.1).sum::<u32>() * tenants.iter().map(|tenant| tenant.1).sum::<u32>();
            let weight = asking[guest].1 * tenants[asking[guest].0 % nodes.len()].1;
            let smallest = host.min(tenants[asking[guest].0 % nodes.len()].0);
            let share = u128::from(due(smallest)) * u128::from(weight) / u128::from(weights);
            prop_assert!(*had > 0 || share < 300, "{guest} had nothing of {share} bytes");
        }
    }
}
