//! One plugin under test, on a node where everybody else has done their part.

use serde_json::Value;

use crate::lab::{Container, Lab, State, chain_with};
use crate::table::ensure;
use crate::tracer::{Fault, SystemCall, Traced, Tracer};

/// How many nodes are worked on at the same time: mostly the kernel is waited for.
pub const NODES: usize = 4;

/// One plugin on a node of its own: those before it have done their part for `victim`, and
/// `keeper` has the whole chain.
pub struct Bench {
    lab: Lab,
    tracer: Tracer,
    pub plugin: &'static str,
    victim: Container,
    keeper: Container,
    kept: Value,
    /// What the plugins before it came to.
    pub given: Value,
    before: State,
}

impl Bench {
    pub fn new(backend: &'static str, plugin: &'static str) -> Self {
        let lab = Lab::new(backend);
        let keeper = lab.container("keeper", 8001);
        let victim = lab.container("victim", 8002);
        let chain = chain_with(plugin);
        let (first, _) = chain.split_at(chain.iter().position(|other| *other == plugin).unwrap());
        let kept = match plugin {
            // What the first container on the node changes is more.
            "firewall" => lab.add(first, &keeper),
            _ => lab.add(chain, &keeper),
        };
        if plugin == "loopback" {
            lab.node.sh("ip -n victim link set lo down");
        }
        let given = lab.add(first, &victim);
        let before = lab.state_with(&victim);
        Self {
            tracer: Tracer::new(lab.node.dir.path()),
            lab,
            plugin,
            victim,
            keeper,
            kept,
            given,
            before,
        }
    }

    /// Removes the limits of the container's link, as does whoever deletes that after DEL.
    fn forget_limits(&self) {
        if let Some(link) = self.limited() {
            let remove = |what| format!("tc qdisc del dev {link} {what} 2>&1 || true");
            self.lab.node.sh(&remove("root"));
            self.lab.node.sh(&remove("ingress"));
        }
    }

    /// Whether the container's link has no limits.
    pub fn is_unlimited(&self) -> Result<(), String> {
        let Some(link) = self.limited() else {
            return Ok(());
        };
        let found = self.lab.node.sh(&format!("tc qdisc show dev {link}"));
        let is_limit = |line: &str| line.starts_with("qdisc tbf") || line.contains("ingress");
        ensure(!found.lines().any(is_limit), || found.clone())
    }

    /// The host's end of the container's link, where that is limited.
    fn limited(&self) -> Option<&str> {
        let interfaces = self.given["interfaces"].as_array();
        let mut interfaces = interfaces.filter(|_| self.plugin == "bandwidth")?.iter();
        interfaces.find(|one| one["sandbox"].is_null())?["name"].as_str()
    }

    /// Runs `command` under the tracer.
    pub fn run(
        &self,
        command: &str,
        result: &Value,
        decide: impl FnMut(usize, Option<SystemCall>) -> Option<Fault>,
    ) -> Traced {
        if command == "ADD" {
            self.forget_limits();
        }
        self.tracer.run(
            &self.lab.call(self.plugin, &self.victim),
            &self.lab.node.bin.join(self.plugin),
            command,
            &self.lab.config(self.plugin, &self.victim, result),
            decide,
        )
    }

    /// The result that `command` is given: for DEL there is something to delete.
    pub fn to_run_with(&self, command: &str) -> Value {
        match command {
            "ADD" => self.given.clone(),
            _ => self.add().unwrap(),
        }
    }

    /// An ADD in peace, and what it makes works.
    pub fn add(&self) -> Result<Value, String> {
        self.forget_limits();
        let output = self.lab.run(self.plugin, "ADD", &self.victim, &self.given);
        ensure(output.ok, || format!("ADD: {output:?}"))?;
        let result = output.json();
        self.works(&result)?;
        Ok(result)
    }

    /// Whether what ADD made works.
    pub fn works(&self, result: &Value) -> Result<(), String> {
        self.lab.works(self.plugin, &self.victim, result)
    }

    /// Whether everything is as it was before ADD.
    pub fn is_as_before(&self) -> Result<(), String> {
        self.lab.state_with(&self.victim).is_as(&self.before)
    }

    /// The same when a call has failed.
    pub fn is_nearly_as_before(&self) -> Result<(), String> {
        let now = self.lab.state_with(&self.victim).without_hints();
        now.is_as(&self.before.clone().without_hints())
    }

    /// Whether at most the container's link is not as it was before ADD; now it is.
    pub fn restore_link(&self) -> Result<(), String> {
        let before = self.before.clone().without_hints().of_the_node();
        self.lab.state().without_hints().is_as(&before)?;
        self.lab
            .node
            .sh("ip -n victim link set eth0 mtu 1500 txqueuelen 1000 allmulticast off");
        Ok(())
    }

    /// A DEL in peace.
    pub fn remove(&self, result: &Value) -> Result<(), String> {
        self.lab.del(&[self.plugin], &self.victim, result)
    }

    /// A DEL in peace leaves nothing, and the other container has noticed nothing.
    pub fn del(&self, result: &Value) -> Result<(), String> {
        self.remove(result)?;
        self.is_as_before()?;
        self.keeper_is_well()
    }

    /// The same, but GC may have to help: for a file that was written aside and refused to
    /// go when it should.
    pub fn del_and_collect(&self, result: &Value) -> Result<(), String> {
        self.remove(result)?;
        if self.is_as_before().is_err() {
            self.lab
                .gc(chain_with(self.plugin), &[&self.keeper, &self.victim])?;
        }
        self.is_as_before()?;
        self.keeper_is_well()
    }

    fn keeper_is_well(&self) -> Result<(), String> {
        let kept = self.lab.answers(&self.keeper, &self.kept);
        kept.and_then(|()| self.lab.is_mapped(&self.keeper))
            .map_err(|error| format!("the other container: {error}"))
    }
}
