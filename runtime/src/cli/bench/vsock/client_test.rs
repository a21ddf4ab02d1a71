use super::super::host_loop::HostLoop;
use super::super::reach::AtPath;
use super::*;

/// Both sides of all that is measured, in its smallest form.
#[test]
fn the_client_measures_the_host_loop() {
    let folder = tempfile::tempdir().unwrap();
    let peer = HostLoop::new(&folder.path().join("socket")).unwrap();
    let to = AtPath(peer.path());
    for scenario in Scenario::ALL {
        let measured = scenario.run(&to, Duration::from_millis(20)).unwrap();
        assert!(measured.rate() > 0.0, "{scenario:?}: {measured:?}");
        assert_eq!(measured.percentile(99) > Duration::ZERO, scenario == Scenario::Requests);
        assert!(measured.percentile(50) <= measured.percentile(99));
    }
}

#[test]
fn a_port_without_a_server_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let peer = HostLoop::new(&folder.path().join("socket")).unwrap();
    assert!(AtPath(peer.path()).connect(7).is_err());
    assert!(exits(&AtPath(peer.path())).is_err());
}

#[test]
fn services_have_the_guests_ports() {
    let ports = [Service::Echo, Service::Sink, Service::Source, Service::Exits].map(Service::port);
    assert_eq!(ports, [1024, 1025, 1026, 1027]);
}
