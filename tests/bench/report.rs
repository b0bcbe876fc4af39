//! All figures, the goals, and how both are printed: as Markdown, which docs/performance.md
//! contains too.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::chain::Backend;
use crate::sample::Sample;
use crate::{Contender, Pair, Peers, measure, plot};

/// Everything measured so far.
pub struct Report {
    /// What was measured on what, in words.
    setting: Vec<(&'static str, String)>,
    /// The chain: beside so many containers, or on an empty node.
    pairs: BTreeMap<(Contender, Option<u16>), Pair>,
    singles: BTreeMap<(String, &'static str), Pair>,
    starts: BTreeMap<&'static str, Sample>,
    /// KiB, and the plugin.
    memory: BTreeMap<Contender, (u64, &'static str)>,
    operations: BTreeMap<Contender, Sample>,
    failed: BTreeMap<Contender, u32>,
}

/// One goal for one backend.
struct Goal {
    what: String,
    backend: Backend,
    /// What is measured, and the bound.
    value: f64,
    bound: f64,
    at_least: bool,
}

impl Goal {
    fn holds(&self) -> bool {
        if self.at_least {
            self.value >= self.bound
        } else {
            self.value <= self.bound
        }
    }
}

/// `12.3 (≥ 6)`, marked where it is missed.
impl Display for Goal {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let sign = if self.at_least { '≥' } else { '≤' };
        let missed = if self.holds() { "" } else { " **missed**" };
        write!(f, "{:.2} ({sign} {}){missed}", self.value, self.bound)
    }
}

impl Report {
    /// Nothing measured yet.
    pub fn new(peers: &Peers, quick: bool) -> Self {
        let first_line = |program: &Path, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args);
            let (output, _) = measure::run(command, "");
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().next().unwrap_or_default().to_owned()
        };
        let size = |file: PathBuf| fs::metadata(file).map_or(0, |data| data.len());
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let setting = vec![
            (
                "machine",
                format!(
                    "{processors} processors {}",
                    model
                        .unwrap_or_default()
                        .trim_start_matches([' ', '\t', ':'])
                ),
            ),
            ("kernel", first_line(Path::new("uname"), &["-sr"])),
            ("reference", reference_version(&peers.reference)),
            (
                "cnibox",
                format!(
                    "{}, {} bytes",
                    first_line(&peers.cnibox.join("bridge"), &["--version"]),
                    size(crate::common::binary())
                ),
            ),
            (
                "iptables",
                first_line(Path::new("iptables"), &["--version"]),
            ),
            ("nft", first_line(Path::new("nft"), &["--version"])),
            (
                "command",
                format!(
                    "make bench{}",
                    if quick { " BENCH_ARGS=--quick" } else { "" }
                ),
            ),
        ];
        Self {
            setting,
            pairs: BTreeMap::new(),
            singles: BTreeMap::new(),
            starts: BTreeMap::new(),
            memory: BTreeMap::new(),
            operations: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Tells who waits what is being measured.
    #[expect(clippy::print_stderr, clippy::unused_self, reason = "for who waits")]
    pub fn progress(&self, what: &str) {
        eprintln!("bench: {what}");
    }

    /// How long the run took.
    pub fn took(&mut self, time: Duration) {
        self.setting.push(("run", format!("{} s", time.as_secs())));
    }

    /// The chain by `who`, beside so many containers or on an empty node.
    pub fn pair(&mut self, who: Contender, beside: Option<u16>) -> &mut Pair {
        self.pairs.entry((who, beside)).or_default()
    }

    /// A single plugin.
    pub fn single(&mut self, what: &str, who: &'static str) -> &mut Pair {
        self.singles.entry((what.to_owned(), who)).or_default()
    }

    /// From start to exit without work, milliseconds.
    pub fn start(&mut self, who: &'static str) -> &mut Sample {
        self.starts.entry(who).or_default()
    }

    /// The most that a plugin of the chain took: KiB, and which.
    pub fn memory(&mut self, who: Contender, most: (u64, &'static str)) {
        self.memory.insert(who, most);
    }

    /// ADDs and DELs of the chain per second.
    pub fn operations(&mut self, who: Contender) -> &mut Sample {
        self.operations.entry(who).or_default()
    }

    /// So many more of them failed.
    pub fn failed(&mut self, who: Contender, count: u32) {
        *self.failed.entry(who).or_default() += count;
    }

    /// The most containers that were alive.
    fn most(&self) -> u16 {
        self.pairs
            .keys()
            .filter_map(|(_, beside)| *beside)
            .max()
            .unwrap_or_default()
    }

    /// A figure of the chain, by `who` and on an empty node where nothing else is said.
    fn chain(&self, who: Contender, beside: Option<u16>, of: impl Fn(&Pair) -> &Sample) -> f64 {
        self.pairs
            .get(&(who, beside))
            .map_or(f64::NAN, |pair| of(pair).median())
    }

    /// Every goal, row by row.
    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for backend in [Backend::Iptables, Backend::Nftables] {
            let (cnibox, floor) = (Contender::Cnibox(backend), Contender::Floor(backend));
            let of = |iptables: f64, nftables: f64| match backend {
                Backend::Iptables => iptables,
                Backend::Nftables => nftables,
            };
            let mut goal = |what: &str, at_least, value: f64, bound: f64| {
                goals.push(Goal {
                    what: what.to_owned(),
                    backend,
                    value,
                    bound,
                    at_least,
                });
            };
            let against = |of: fn(&Pair) -> &Sample| {
                self.chain(Contender::Reference, None, of) / self.chain(cnibox, None, of)
            };
            let add = |who, beside| self.chain(who, beside, |pair| &pair.add);
            goal(
                "ADD of the chain, reference / cnibox",
                true,
                against(|pair| &pair.add),
                of(6.0, 12.0),
            );
            goal(
                "DEL of the chain, reference / cnibox",
                true,
                against(|pair| &pair.del),
                of(5.0, 6.0),
            );
            goal(
                "CPU for the pair, reference / cnibox",
                true,
                against(|pair| &pair.cpu),
                of(8.0, 15.0),
            );
            goal(
                &format!(
                    "ADD with {} containers alive / on an empty node",
                    self.most()
                ),
                false,
                add(cnibox, Some(self.most())) / add(cnibox, None),
                of(1.5, 1.15),
            );
            goal(
                "ADD, cnibox / floor",
                false,
                add(cnibox, None) / add(floor, None),
                of(2.0, 1.5),
            );
            let operations = |who| self.operations.get(&who).map_or(f64::NAN, Sample::median);
            goal(
                "32 workers ADDing and DELing, operations per second, cnibox / reference",
                true,
                operations(cnibox) / operations(Contender::Reference),
                of(5.0, 8.0),
            );
            let memory = self.memory.get(&cnibox).map_or(u64::MAX, |(most, _)| *most);
            #[expect(clippy::cast_precision_loss, reason = "some thousand KiB")]
            goal(
                "largest resident memory of any plugin run, MiB",
                false,
                memory as f64 / 1024.0,
                6.0,
            );
        }
        goals
    }

    /// Whether every goal does.
    pub fn holds(&self) -> bool {
        self.goals().iter().all(Goal::holds)
    }

    /// Writes `target/bench/`; answers the directory.
    pub fn write(&self) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let dir = PathBuf::from(target).join("bench");
        fs::create_dir_all(&dir).expect("make a directory for the report");
        let text = serde_json::to_string_pretty(&self.to_json()).expect("JSON");
        fs::write(dir.join("report.json"), text).expect("write the report");
        let lines = Contender::ALL.map(|who| plot::Line {
            name: who.to_string(),
            points: self.curve(who),
        });
        plot::draw(&dir.join("cost.svg"), &lines).expect("draw the plot");
        dir
    }

    /// Puts the figures into `docs/performance.md`, and the plot in `dir` into `tests/bench/`.
    ///
    /// # Panics
    /// When the document has no place for them.
    pub fn publish(&self, dir: &Path) {
        const START: &str = "<!-- make bench BENCH_ARGS=--publish -->\n";
        const END: &str = "<!-- end of figures -->";
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let plot = root.join("tests/bench/cost.svg");
        fs::copy(dir.join("cost.svg"), plot).expect("copy the plot");
        let document = root.join("docs/performance.md");
        let text = fs::read_to_string(&document).expect("read docs/performance.md");
        let (before, rest) = text.split_once(START).expect("where figures start");
        let (_, after) = rest.split_once(END).expect("where figures end");
        let text = format!("{before}{START}{}{END}{after}", self.figures());
        fs::write(document, text).expect("write docs/performance.md");
    }

    /// The table of docs/performance.md: what each contender takes, and what it was measured on.
    fn figures(&self) -> String {
        let cells = |of: &dyn Fn(Contender) -> Option<f64>| {
            let cell =
                |who| of(who).map_or_else(|| "–".to_owned(), |figure| format!("{figure:.1}"));
            Contender::ALL.map(cell).join(" | ")
        };
        let pair = |beside, of: fn(&Pair) -> &Sample| {
            cells(&|who| Some(of(self.pairs.get(&(who, beside))?).median()))
        };
        let most = self.most();
        #[expect(clippy::cast_precision_loss, reason = "some thousand KiB")]
        let memory = cells(&|who| Some(self.memory.get(&who)?.0 as f64 / 1024.0));
        let rows = [
            ("ADD, ms".to_owned(), pair(None, |pair| &pair.add)),
            ("DEL, ms".to_owned(), pair(None, |pair| &pair.del)),
            (
                "processor time of both, ms".to_owned(),
                pair(None, |pair| &pair.cpu),
            ),
            (
                format!("ADD beside {most} containers, ms"),
                pair(Some(most), |pair| &pair.add),
            ),
            (
                format!("DEL beside {most} containers, ms"),
                pair(Some(most), |pair| &pair.del),
            ),
            (
                "ADDs and DELs a second, 32 at a time".to_owned(),
                cells(&|who| Some(self.operations.get(&who)?.median())),
            ),
            ("memory of the largest process, MiB".to_owned(), memory),
        ];
        let rows = rows.map(|(what, cells)| format!("| {what} | {cells} |"));
        let rows = rows.join("\n");
        let names = Contender::ALL.map(|who| who.to_string()).join(" | ");
        let rule = " --- |".repeat(Contender::ALL.len());
        let said = |(what, said): &(&str, String)| format!("{what}: {said}");
        let setting: Vec<String> = self.setting.iter().map(said).collect();
        format!(
            "| | {names} |\n| --- |{rule}\n{rows}\n\n{}.\n",
            setting.join("; ")
        )
    }

    /// Median milliseconds of ADD and DEL beside so many containers.
    fn curve(&self, who: Contender) -> Vec<(u16, f64, f64)> {
        self.pairs
            .iter()
            .filter(|((contender, _), _)| *contender == who)
            .filter_map(|((_, beside), pair)| {
                Some(((*beside)?, pair.add.median(), pair.del.median()))
            })
            .collect()
    }

    fn to_json(&self) -> Value {
        let pair = |pair: &Pair| {
            json!({
                "add_ms": pair.add.to_json(), "del_ms": pair.del.to_json(),
                "cpu_ms": pair.cpu.to_json(),
                "processes_ms": pair.steps.iter().map(|((command, name), sample)| {
                    (format!("{command} {name}"), sample.to_json())
                }).collect::<BTreeMap<_, _>>(),
            })
        };
        json!({
            "setting": self.setting.iter().cloned().collect::<BTreeMap<_, _>>(),
            "goals": self.goals().iter().map(|goal| json!({
                "what": goal.what, "backend": goal.backend.word(), "value": goal.value,
                (if goal.at_least { "at_least" } else { "at_most" }): goal.bound,
                "holds": goal.holds(),
            })).collect::<Vec<_>>(),
            "chain": self.pairs.iter().map(|((who, beside), measured)| json!({
                "who": who.to_string(), "containers_alive": beside.unwrap_or_default(),
                "node": if beside.is_some() { "filling" } else { "empty" },
                "cost": pair(measured),
            })).collect::<Vec<_>>(),
            "plugins": self.singles.iter().map(|((what, who), measured)| json!({
                "what": what, "who": who, "cost": pair(measured),
            })).collect::<Vec<_>>(),
            "start_ms": self.starts.iter().map(|(who, sample)| (*who, sample.to_json()))
                .collect::<BTreeMap<_, _>>(),
            "memory_kib": self.memory.iter().map(|(who, (most, plugin))| {
                (who.to_string(), json!({"most": most, "plugin": plugin}))
            }).collect::<BTreeMap<_, _>>(),
            "operations_per_second": self.operations.iter().map(|(who, sample)| {
                (who.to_string(), sample.to_json())
            }).collect::<BTreeMap<_, _>>(),
            "operations_failed": self.failed.iter().map(|(who, count)| (who.to_string(), *count))
                .collect::<BTreeMap<_, _>>(),
        })
    }

    fn write_goals(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let goals = self.goals();
        writeln!(
            f,
            "| | iptables backend | nftables backend |\n| --- | --- | --- |"
        )?;
        let (iptables, nftables): (Vec<_>, Vec<_>) = goals
            .iter()
            .partition(|goal| goal.backend == Backend::Iptables);
        for (iptables, nftables) in iptables.iter().zip(nftables) {
            writeln!(f, "| {} | {iptables} | {nftables} |", iptables.what)?;
        }
        Ok(())
    }

    fn write_chain(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "| the chain, ms: median (quartiles) | containers alive | ADD | DEL | CPU of both |\n\
             | --- | --- | --- | --- | --- |"
        )?;
        for ((who, beside), pair) in &self.pairs {
            let alive = beside.map_or_else(|| "empty node".to_owned(), |count| count.to_string());
            writeln!(
                f,
                "| {who} | {alive} | {} | {} | {} |",
                pair.add, pair.del, pair.cpu
            )?;
        }
        Ok(())
    }

    fn write_plugins(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "| one process of the chain, ms | ADD | DEL |\n| --- | --- | --- |"
        )?;
        for ((who, _), pair) in self
            .pairs
            .iter()
            .filter(|((_, beside), _)| beside.is_none())
        {
            let names: std::collections::BTreeSet<_> =
                pair.steps.keys().map(|(_, name)| *name).collect();
            for name in names {
                let of = |command| {
                    let sample = pair.steps.get(&(command, name));
                    sample.map_or_else(|| "–".to_owned(), ToString::to_string)
                };
                writeln!(f, "| {name}, {who} | {} | {} |", of("ADD"), of("DEL"))?;
            }
        }
        writeln!(
            f,
            "\n| one plugin, ms | who | ADD | DEL | CPU of both |\n| --- | --- | --- | --- | --- |"
        )?;
        for ((what, who), pair) in &self.singles {
            writeln!(
                f,
                "| {what} | {who} | {} | {} | {} |",
                pair.add, pair.del, pair.cpu
            )?;
        }
        writeln!(f, "\n| start to exit without work | ms |\n| --- | --- |")?;
        for (who, sample) in &self.starts {
            writeln!(f, "| {who} | {:.2} |", sample.median())?;
        }
        writeln!(
            f,
            "\n| | largest resident memory, KiB | 32 workers, operations per second | of them failed |\n| --- | --- | --- | --- |"
        )?;
        for (who, operations) in &self.operations {
            let (most, plugin) = self.memory.get(who).copied().unwrap_or_default();
            let failed = self.failed.get(who).copied().unwrap_or_default();
            writeln!(f, "| {who} | {most} ({plugin}) | {operations} | {failed} |")?;
        }
        Ok(())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        for (what, said) in &self.setting {
            writeln!(f, "{what}: {said}  ")?;
        }
        writeln!(f)?;
        self.write_goals(f)?;
        writeln!(f)?;
        self.write_chain(f)?;
        writeln!(f)?;
        self.write_plugins(f)
    }
}

/// What the reference says of itself, and where its distribution has it from.
fn reference_version(dir: &Path) -> String {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Version}", "containernetworking-plugins"]);
    let packaged = if dir == Path::new("/usr/lib/cni") {
        query.output().ok().filter(|output| output.status.success())
    } else {
        None
    };
    match packaged {
        Some(output) => format!(
            "Debian's containernetworking-plugins {}",
            String::from_utf8_lossy(&output.stdout)
        ),
        None => dir.display().to_string(),
    }
}
