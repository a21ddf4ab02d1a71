use super::*;

fn take(share: &DescriptorShare, count: u64) -> Vec<Descriptor> {
    (0..count).map(|_| share.try_take().unwrap()).collect()
}

fn take_for_greetings(share: &DescriptorShare, count: u64) -> Vec<Descriptor> {
    (0..count).map(|_| share.try_take_for_greeting().unwrap()).collect()
}

/// As many as it gets.
fn take_all(share: &DescriptorShare) -> Vec<Descriptor> {
    std::iter::from_fn(|| share.try_take()).collect()
}

#[test]
fn sec_02_whoever_takes_all_leaves_others_their_own_and_some_more() {
    let pool = Descriptors::new(Some(12));
    let greedy = pool.share();
    let kept = take_all(&greedy);
    assert_eq!((kept.len() as u64, pool.used()), (OWN_DESCRIPTORS + 6, 6), "half of the pool");
    assert!(greedy.clone().try_take().is_none() && greedy.try_take_for_greeting().is_some());
    // Also those that come later.
    let later = [pool.share(), pool.share()];
    let theirs: Vec<_> = later.iter().map(take_all).collect();
    assert_eq!(theirs.iter().map(Vec::len).collect::<Vec<_>>(), [4 + 3, 4 + 2]);
    assert_eq!((pool.used(), greedy.used(), later[1].used()), (11, 10, 6));
    let last = pool.share();
    assert_eq!(take_all(&last).len(), 4 + 1);
    // What one gives back, those can have that have less.
    drop(kept);
    assert_eq!((pool.used(), greedy.used()), (5, 0));
    assert_eq!(take(&later[1], 2).len(), 2);
    drop(theirs);
    assert_eq!(pool.used(), 0);
}

#[test]
fn those_that_want_more_than_there_is_get_the_same() {
    let pool = Descriptors::new(Some(30));
    let shares = [pool.share(), pool.share()];
    let mut kept = Vec::new();
    loop {
        let before = kept.len();
        kept.extend(shares.iter().filter_map(DescriptorShare::try_take));
        if kept.len() == before {
            break;
        }
    }
    assert_eq!(shares.map(|share| share.used() - OWN_DESCRIPTORS), [10, 10]);
    assert_eq!(pool.used(), 20);
}

#[test]
fn the_last_of_a_pool_is_taken_too() {
    for max in 0..3 {
        let pool = Descriptors::new(Some(max));
        assert_eq!(take_all(&pool.share()).len() as u64, OWN_DESCRIPTORS + max.div_ceil(2), "{max}");
    }
}

#[test]
fn a_vm_has_none_of_the_pool_while_it_has_not_all_of_its_own() {
    let pool = Descriptors::new(Some(10));
    let share = pool.share();
    let mut kept = take(&share, OWN_DESCRIPTORS + 3);
    assert_eq!(pool.used(), 3);
    // Whichever goes, the first of all as well.
    drop(kept.remove(0));
    assert_eq!((pool.used(), share.used()), (2, OWN_DESCRIPTORS + 2));
    drop(kept.split_off(OWN_DESCRIPTORS as usize));
    assert_eq!((pool.used(), share.used()), (0, OWN_DESCRIPTORS));
    kept.extend(take(&share, 1));
    assert_eq!(pool.used(), 1);
}

#[test]
fn sec_02_greetings_take_nothing_that_is_for_connections() {
    let pool = Descriptors::new(Some(10));
    let shares: Vec<_> = (0..4).map(|_| pool.share()).collect();
    let greetings: Vec<_> =
        shares.iter().flat_map(|share| std::iter::from_fn(|| share.try_take_for_greeting())).collect();
    assert_eq!(pool.used(), 5, "half of it, all VMs together");
    assert_eq!(greetings.len() as u64, 4 * OWN_DESCRIPTORS + 5);
    // The first has five of the pool.
    for share in &shares[1..] {
        let _all = take(share, OWN_DESCRIPTORS + 3);
        assert!(share.try_take().is_none());
    }
    assert_eq!(take_all(&shares[0]).len() as u64, OWN_DESCRIPTORS);
    drop(greetings);
    assert_eq!((pool.used(), shares[0].used()), (0, 0));
}

#[test]
fn a_greeting_becomes_a_connection_at_the_place_that_it_has() {
    let pool = Descriptors::new(Some(4));
    let share = pool.share();
    let mut greetings = take_for_greetings(&share, OWN_DESCRIPTORS + 2);
    assert_eq!(pool.used(), 2);
    let into = |greeting: Descriptor| {
        let connection = greeting.into_connection().unwrap();
        (pool.used(), share.used(), connection)
    };
    // The VM's own come first, and then there is nothing of the pool left to have.
    let mut kept = Vec::new();
    for (used, all) in [(1, 6), (0, 6), (0, 6), (0, 6)] {
        let (pooled, sum, connection) = into(greetings.pop().unwrap());
        assert_eq!((pooled, sum), (used, all));
        kept.push(connection);
    }
    // Two greetings are left, in places of their own: one of the pool is needed.
    let (pooled, sum, fifth) = into(greetings.pop().unwrap());
    assert_eq!((pooled, sum), (1, 6));
    drop(fifth);
    // One that has a place of the pool keeps that, also if nobody else could have it.
    let held = greetings.pop().unwrap();
    let more = take_for_greetings(&share, OWN_DESCRIPTORS - 1);
    let pooled = share.try_take_for_greeting().unwrap();
    let others = [pool.share(), pool.share()].map(|share| take_all(&share));
    assert_eq!((pool.used(), share.try_take().is_none()), (4, true));
    let connection = pooled.into_connection().unwrap();
    assert_eq!(pool.used(), 4);
    let refused = held.into_connection().unwrap_err();
    assert_eq!((share.used(), pool.used()), (9, 4), "it is what it was");
    drop((refused, more, connection, others, kept));
    assert_eq!((pool.used(), share.used()), (0, 0));
}

#[test]
fn a_scrape_is_told_what_is_taken() {
    let pool = Descriptors::new(Some(10));
    let share = pool.share();
    let _kept = (take(&share, OWN_DESCRIPTORS + 2), take_for_greetings(&share, 1));
    assert_eq!(pool.source().read(), DescriptorReading { used: 2, max: Some(10) });
    assert_eq!(share.source().read(), DescriptorReading { used: OWN_DESCRIPTORS + 3, max: None });
}

#[test]
fn a_share_that_is_gone_leaves_nothing_behind() {
    let pool = Descriptors::new(Some(6));
    let kept = take(&pool.share(), OWN_DESCRIPTORS + 3);
    assert_eq!(pool.used(), 3);
    drop(kept);
    assert_eq!(pool.used(), 0);
}

#[test]
fn without_a_number_it_is_half_of_what_the_process_may_open() {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let max = Descriptors::new(None).max();
    assert!(max == limit / 2 || limit == u64::MAX, "{max} of {limit}");
    assert_eq!(Descriptors::new(Some(7)).max(), 7);
}

#[test]
fn the_sum_is_never_above_the_limit() {
    let pool = Descriptors::new(Some(5));
    let own = pool.share();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Each has one of its own, and one that is everybody's.
            let shares = [pool.share(), own.clone()];
            scope.spawn(move || {
                for _ in 0..1000 {
                    let mut kept = Vec::new();
                    for share in &shares {
                        kept.extend((0..6).filter_map(|_| share.try_take()));
                        let greetings = (0..5).filter_map(|_| share.try_take_for_greeting());
                        kept.extend(greetings.map(|one| one.into_connection().unwrap_or_else(|one| one)));
                        assert!(share.pool().used() <= 5);
                    }
                }
            });
        }
    });
    assert_eq!((pool.used(), own.used()), (0, 0));
}
