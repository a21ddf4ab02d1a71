use super::*;

fn take(share: &DescriptorShare, count: u64) -> Vec<Descriptor> {
    (0..count).map(|_| share.try_take().unwrap()).collect()
}

#[test]
fn sec_02_whoever_takes_all_leaves_others_their_own() {
    let pool = Descriptors::new(Some(10));
    let greedy = pool.share();
    let mut kept = take(&greedy, OWN_DESCRIPTORS + 10);
    assert!(greedy.try_take().is_none() && greedy.clone().try_take().is_none());
    assert_eq!(pool.used(), 10);
    // Also one that comes later.
    let modest = pool.share();
    let own = take(&modest, OWN_DESCRIPTORS);
    assert!(modest.try_take().is_none());
    assert_eq!(pool.used(), 10);
    drop(kept.pop());
    let _further = modest.try_take().unwrap();
    assert!(greedy.try_take().is_none(), "first come, first served");
    drop((own, kept));
    assert_eq!(pool.used(), 1);
    let _again = take(&modest, OWN_DESCRIPTORS);
    assert_eq!(pool.used(), 1, "its own come first");
}

#[test]
fn a_share_that_is_gone_leaves_nothing_behind() {
    let pool = Descriptors::new(Some(3));
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
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let share = pool.share();
            scope.spawn(move || {
                let _own = take(&share, OWN_DESCRIPTORS);
                for _ in 0..1000 {
                    let _kept: Vec<_> = (0..3).map(|_| share.try_take()).collect();
                    assert!(share.pool().used() <= 5);
                }
            });
        }
    });
    assert_eq!(pool.used(), 0);
}
