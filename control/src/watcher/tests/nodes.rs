//! A site of several nodes of which one dies.

use super::*;

/// The first site has a second node, which owns a volume of its own.
struct Siblings {
    world: World,
    sibling: NodeId,
    /// Group that the sibling owns.
    its_group: GroupId,
}

impl Siblings {
    fn new() -> Self {
        let world = World::new(FailoverMode::Automatic);
        let mut siblings =
            Siblings { world, sibling: NodeId::generate(), its_group: GroupId::generate() };
        siblings.build();
        siblings
    }

    fn build(&mut self) {
        let (pool, sibling) = (PoolId::generate(), self.sibling);
        let world = &mut self.world;
        let site = world.sites[0];
        world.admit(sibling, site, "sibling");
        let extent_bytes = 16 << 20;
        world.give(Command::CreatePool { pool, name: name("sibling"), site, extent_bytes });
        world.give_device(sibling, pool, "sibling");
        let (other, _) = world.state.pools().find(|(_, it)| it.site == world.sites[1]).unwrap();
        let legs = [pool, other].map(|pool| LegRequest { leg: LegId::generate(), pool });
        world.create_volume(self.its_group, "v-sibling", &legs);
        self.all_heard();
        for node in [sibling, self.world.nodes[1]] {
            self.world.says_of(self.its_group, node, false);
        }
    }

    fn all_heard(&mut self) {
        for node in [self.world.nodes[0], self.sibling, self.world.nodes[1]] {
            self.world.heard(node);
        }
    }

    /// All but the first node are heard after `duration`; the other site hears it no more.
    fn without_first(&mut self, duration: Duration) {
        self.world.pass(duration);
        self.world.heard(self.sibling);
        self.world.heard(self.world.nodes[1]);
        self.world.says(self.world.nodes[1], true);
    }

    fn site_condition(&self) -> SiteCondition {
        self.world.state.site(self.world.sites[0]).unwrap().condition
    }
}

#[test]
fn the_groups_of_a_dead_node_move_in_one_commit_and_its_siblings_stay() {
    let mut all = Siblings::new();
    let first = all.world.nodes[0];
    let second_group = all.world.second_volume();
    all.without_first(SILENCE - Duration::from_millis(1));
    all.world.says_of(second_group, all.world.nodes[1], true);
    assert!(all.world.assess().is_empty());
    all.without_first(Duration::from_millis(1));
    let events = all.world.take_only("FailOverSite");
    let Event::FailoverDecided { site, evidence, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!((*site, evidence.condition), (all.world.sites[0], SiteCondition::Normal));
    assert_eq!(evidence.decided_unix_ms - evidence.first_sign_unix_ms, 2_000);
    assert!(evidence.observed.contains("node n0 silent"), "{}", evidence.observed);
    assert_eq!(evidence.left_behind_total, 0, "what its sibling owns is not concerned");
    let moved: std::collections::BTreeSet<_> = events[1..]
        .iter()
        .map(|event| match event {
            Event::OwnerMoved { group, from, to, .. } => {
                assert_eq!((*from, *to), (first, all.world.nodes[1]));
                *group
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(moved, [all.world.group, second_group].into());
    assert_eq!(all.world.state.group(all.its_group).unwrap().owner, all.sibling);
    assert_eq!(all.site_condition(), SiteCondition::Normal);
    all.without_first(REFUSED_PAUSE);
    assert!(all.world.assess().is_empty(), "a node fails over once");
}

#[test]
fn a_node_whose_stream_alone_is_lost_keeps_its_groups() {
    let mut all = Siblings::new();
    for _ in 0..100 {
        all.without_first(Duration::from_millis(500));
        all.world.says(all.world.nodes[1], false);
        assert!(all.world.assess().is_empty(), "the other side still hears it");
    }
}

#[test]
fn a_hold_down_is_waited_for_when_a_node_dies_too() {
    let mut all = Siblings::new();
    let rules = PolicyRules {
        mode: FailoverMode::Automatic,
        hold_down_ms: 3_000,
        preferred_site: None,
        failback: false,
    };
    all.world.give(Command::ChangePolicy { policy: all.world.policy, rules });
    all.without_first(SILENCE + Duration::from_millis(2_999));
    assert!(all.world.assess().is_empty());
    all.without_first(Duration::from_millis(1));
    all.world.take_only("FailOverSite");
}

#[test]
fn other_policies_and_an_unsafe_log_and_maintenance_keep_a_dead_nodes_groups() {
    for mode in [FailoverMode::OnSignal, FailoverMode::Manual] {
        let mut all = Siblings::new();
        let rules = PolicyRules { mode, hold_down_ms: 0, preferred_site: None, failback: false };
        all.world.give(Command::ChangePolicy { policy: all.world.policy, rules });
        all.without_first(SILENCE);
        assert!(all.world.assess().is_empty(), "{mode:?}");
    }
    let mut all = Siblings::new();
    all.world.watcher.may_act = false;
    all.without_first(SILENCE);
    assert!(all.world.assess().is_empty());
    all.world.watcher.may_act = true;
    let (site, source) = (all.world.sites[0], ConditionSource::Signal);
    let report =
        |condition| Command::ReportSiteCondition { site, condition, source, detail: String::new() };
    all.world.give(report(SiteCondition::Maintenance));
    assert!(all.world.assess().is_empty());
    all.world.give(report(SiteCondition::Normal));
    all.world.take_only("FailOverSite");
}

#[test]
fn nodes_that_fall_silent_one_shortly_after_the_other_are_one_loss_of_the_site() {
    let mut all = Siblings::new();
    // The sibling says its last word a little later than the first node.
    all.world.pass(Duration::from_millis(250));
    all.world.heard(all.sibling);
    all.world.pass(SILENCE - Duration::from_millis(250));
    all.world.heard(all.world.nodes[1]);
    for group in [all.world.group, all.its_group] {
        all.world.says_of(group, all.world.nodes[1], true);
    }
    assert!(all.world.assess().is_empty(), "the sibling may be dying too");
    all.world.pass(Duration::from_millis(250));
    all.world.heard(all.world.nodes[1]);
    all.world.take_only("ReportSiteCondition");
    assert_eq!(all.site_condition(), SiteCondition::Lost);
    let events = all.world.take_only("FailOverSite");
    assert_eq!(events.len(), 3, "one commit for all of them: {events:?}");
}

#[test]
fn a_sibling_that_dies_later_makes_the_site_lost_and_takes_only_what_is_left() {
    let mut all = Siblings::new();
    all.without_first(SILENCE);
    all.world.take_only("FailOverSite");
    all.world.pass(SILENCE);
    all.world.heard(all.world.nodes[1]);
    all.world.says_of(all.its_group, all.world.nodes[1], true);
    all.world.take_only("ReportSiteCondition");
    let events = all.world.take_only("FailOverSite");
    assert!(matches!(&events[1..], [Event::OwnerMoved { group, .. }] if *group == all.its_group));
    // One of them returns: the site is there again, and the other's groups have moved already.
    all.world.heard(all.sibling);
    all.world.take_only("ReportSiteCondition");
    assert_eq!(all.site_condition(), SiteCondition::Normal);
    assert!(all.world.assess().is_empty());
}

#[test]
fn a_restarted_control_process_keeps_a_site_lost_until_a_node_is_really_heard() {
    let mut all = Siblings::new();
    all.world.pass(SILENCE);
    all.world.heard(all.world.nodes[1]);
    all.world.take_only("ReportSiteCondition");
    let (other, mut restarted) = (all.world.nodes[1], all.world);
    restarted.watcher = Watcher::new(Times::default());
    restarted.observed.clear();
    restarted.now = Duration::ZERO;
    for _ in 0..40 {
        restarted.heard(other);
        assert!(restarted.assess().is_empty(), "{:?}", restarted.now);
        restarted.pass(Duration::from_millis(200));
    }
    restarted.heard(all.sibling);
    restarted.take_only("ReportSiteCondition");
    assert_eq!(restarted.state.site(restarted.sites[0]).unwrap().condition, SiteCondition::Normal);
}

#[test]
fn a_dead_node_that_a_restarted_control_process_never_heard_is_failed_over() {
    let mut all = Siblings::new();
    all.world.watcher = Watcher::new(Times::default());
    all.world.observed.clear();
    all.world.now = Duration::ZERO;
    all.without_first(SETTLING - Duration::from_millis(1));
    assert!(all.world.assess().is_empty(), "it may yet come");
    all.without_first(Duration::from_millis(1));
    let events = all.world.take_only("FailOverSite");
    let Event::FailoverDecided { evidence, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(evidence.decided_unix_ms - evidence.first_sign_unix_ms, 5_000);
}

/// Control processes start one after the other; until a majority of them signs, none serves nodes.
#[test]
fn nodes_that_could_not_be_served_before_are_not_lost() {
    let mut world = World::new(FailoverMode::Automatic);
    world.watcher = Watcher::new(Times::default());
    world.observed.clear();
    world.now = Duration::from_secs(60);
    world.watcher.serves_since = world.now;
    world.pass(SETTLING - Duration::from_millis(1));
    assert!(world.assess().is_empty(), "they may yet come");
    world.pass(Duration::from_millis(1));
    assert_eq!(world.assess().len(), 2);
}
