//! Turns: who is measured when. Contenders are measured alternately, so that whatever else the machine does meets
//! all of them, and each round begins with another one, so that none always follows the same. Pure.

/// One measurement to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Whose turn it is.
    pub(super) contender: usize,
    /// The first round: files and kernel caches get warm, nothing counts.
    pub(super) warm_up: bool,
}

/// A round to warm up and then `rounds` that count, of `contenders` turns each.
pub(super) fn turns(contenders: usize, rounds: usize) -> impl Iterator<Item = Turn> {
    (0..=rounds).flat_map(move |round| {
        (0..contenders)
            .map(move |place| Turn { contender: (round + place) % contenders, warm_up: round == 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn_each_round_and_begins_some() {
        let turns: Vec<Turn> = turns(3, 6).collect();
        let rounds: Vec<&[Turn]> = turns.chunks(3).collect();
        assert_eq!(rounds.len(), 7);
        for (number, round) in rounds.iter().enumerate() {
            let mut who: Vec<usize> = round.iter().map(|turn| turn.contender).collect();
            assert_eq!(who[0], number % 3);
            who.sort_unstable();
            assert_eq!(who, [0, 1, 2]);
            assert!(round.iter().all(|turn| turn.warm_up == (number == 0)));
        }
    }

    #[test]
    fn nobody_has_no_turns() {
        assert_eq!(turns(0, 5).count(), 0);
    }
}
