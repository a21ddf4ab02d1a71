use super::*;
use crate::testing::*;
use std::time::Duration;

on_both_engines!(runs_a_task);

fn runs_a_task(engine: EngineKind) {
    let kind = on_shard(engine, |cx| async move {
        cx.timer().sleep(Duration::from_millis(1)).await;
        cx.engine()
    });
    assert_eq!(kind, engine);
}
