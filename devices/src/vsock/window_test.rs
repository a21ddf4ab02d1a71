use super::*;

fn taken(windows: &Windows) -> Vec<Window> {
    std::iter::from_fn(|| windows.take()).collect()
}

fn widths(windows: &[Window]) -> Vec<u32> {
    windows.iter().map(Window::bytes).collect()
}

#[test]
fn sec_02_a_device_gives_few_wide_windows_and_what_it_may_take_is_what_its_connections_take() {
    for connections in [1, WIDE_ONES, WIDE_ONES + 1, 100] {
        let buffers = Buffers::new(most_bytes(connections));
        let windows = Windows::new(buffers.clone());
        let all: Vec<_> = (0..connections).map(|_| windows.take().unwrap()).collect();
        let wide = connections.min(WIDE_ONES) as usize;
        let expected = [vec![WIDE; wide], vec![USUAL[0]; connections as usize - wide]].concat();
        assert_eq!(widths(&all), expected);
        assert_eq!(buffers.reading().used, most_bytes(connections));
        assert!(windows.take().is_none());
        drop(all);
        assert_eq!(buffers.reading().used, 0);
    }
}

#[test]
fn a_wide_window_that_is_given_back_is_given_again() {
    let windows = Windows::new(Buffers::new(most_bytes(100)));
    let mut all: Vec<_> = (0..WIDE_ONES + 2).map(|_| windows.take().unwrap()).collect();
    all.pop();
    assert_eq!(windows.take().unwrap().bytes(), USUAL[0], "an ordinary one was given back");
    all.remove(0);
    assert_eq!(windows.take().unwrap().bytes(), WIDE);
}

#[test]
fn where_little_is_left_windows_are_narrow() {
    let least = connection_bytes(USUAL[2]);
    let windows = Windows::new(Buffers::new(connection_bytes(USUAL[0]) + least + least / 2));
    assert_eq!(widths(&taken(&windows)), [USUAL[0], USUAL[2]]);
    let windows = Windows::new(Buffers::new(connection_bytes(WIDE) + least));
    assert_eq!(widths(&taken(&windows)), [WIDE, USUAL[2]]);
}
