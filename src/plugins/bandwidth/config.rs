//! Limits: as written, and as meant (docs/compatibility.md#9.3).

use std::fmt;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use crate::cni::address::parse_cidr;
use crate::cni::json::{self, Problem};
use crate::cni::skel::Call;
use crate::net::traffic::TokenBucket;
use crate::net::traffic::selection::{End, Selection};

/// Microseconds that a packet may wait in the kernel's queue: behind it, more are dropped.
const LATENCY: f64 = 25_000.0;

/// The kernel's ticks, of 64 ns each, in a microsecond.
const TICKS: f64 = 15.625;

/// Bytes: a burst must be below.
const LARGEST_BURST: u64 = u32::MAX as u64;

/// Every key of the reference's bandwidth v1.9.1: bits per second, and bits. The subnets are
/// those of v1.5, which v1.6 passes over.
#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
    shaped_subnets: Option<Vec<String>>,
    unshaped_subnets: Option<Vec<String>>,
    runtime_config: WireRuntimeConfig,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireRuntimeConfig {
    bandwidth: WireBandwidth,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WireBandwidth {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
    shaped_subnets: Vec<String>,
    unshaped_subnets: Vec<String>,
}

/// What the operator and the runtime want. The directions are the container's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Of what the container receives.
    pub ingress: Option<Limit>,
    /// Of what the container sends.
    pub egress: Option<Limit>,
}

/// A limit of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// How fast.
    pub bucket: TokenBucket,
    /// What; all of it where this says nothing.
    pub selection: Option<Selection>,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bucket)?;
        let Some(selection) = &self.selection else {
            return Ok(());
        };
        let preposition = match (selection.are_limited, selection.end) {
            (true, End::Source) => " of what comes from",
            (true, End::Destination) => " of what goes to",
            (false, End::Source) => " but of what comes from",
            (false, End::Destination) => " but of what goes to",
        };
        let subnets = selection.subnets.iter().map(ToString::to_string);
        write!(
            f,
            "{preposition} {}",
            subnets.collect::<Vec<_>>().join(", ")
        )
    }
}

impl Settings {
    /// The settings for ADD, CHECK and STATUS of `call`.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for what is wrong otherwise; each names the key.
    pub fn resolve(call: &Call) -> Result<Self> {
        let wire: Wire = call
            .config
            .read_as("failed to parse network configuration")?;
        json::refuse(&wire.problems(""))?;
        let (_, limits) = wire.limits();
        let limit = |direction: Direction, end| {
            let bucket = direction.bucket()?;
            let selection = limits.selection(end);
            Some(Limit { bucket, selection })
        };
        let [ingress, egress] = limits.directions();
        Ok(Self {
            ingress: limit(ingress, End::Source),
            egress: limit(egress, End::Destination),
        })
    }

    /// Whether anything is limited.
    pub fn any(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }
}

/// Everything wrong with a configuration; `root` is its path in the file.
pub fn validate(root: &str, document: &Value) -> Vec<Problem> {
    json::all_problems(root, document, Wire::problems)
}

impl Wire {
    /// The limits that count, and where they are written: one limit of the configuration's
    /// own makes all of the runtime's not count. Its subnets count for the runtime's too.
    fn limits(&self) -> (&'static str, WireBandwidth) {
        let own = [
            self.ingress_rate,
            self.ingress_burst,
            self.egress_rate,
            self.egress_burst,
        ];
        let [shaped_subnets, unshaped_subnets] =
            [&self.shaped_subnets, &self.unshaped_subnets].map(Clone::clone);
        if own.iter().all(Option::is_none) {
            let mut limits = self.runtime_config.bandwidth.clone();
            if shaped_subnets.is_some() || unshaped_subnets.is_some() {
                limits.shaped_subnets = shaped_subnets.unwrap_or_default();
                limits.unshaped_subnets = unshaped_subnets.unwrap_or_default();
            }
            return ("runtimeConfig.bandwidth.", limits);
        }
        let [ingress_rate, ingress_burst, egress_rate, egress_burst] =
            own.map(Option::unwrap_or_default);
        let limits = WireBandwidth {
            ingress_rate,
            ingress_burst,
            egress_rate,
            egress_burst,
            shaped_subnets: shaped_subnets.unwrap_or_default(),
            unshaped_subnets: unshaped_subnets.unwrap_or_default(),
        };
        ("", limits)
    }

    /// Values that are wrong by themselves or together.
    fn problems(&self, root: &str) -> Vec<Problem> {
        let (place, limits) = self.limits();
        let directions = limits.directions().into_iter();
        let mut problems: Vec<Problem> = directions
            .filter_map(|direction| {
                let Flaw {
                    key,
                    message,
                    sentence,
                } = direction.flaw()?;
                let path = json::below(root, &format!("{place}{}{key}", direction.name));
                Some(Problem::new(path, message).told_as(sentence))
            })
            .collect();
        let is_own = self.shaped_subnets.is_some() || self.unshaped_subnets.is_some();
        let place = if is_own { "" } else { place };
        let mut refuse = |key: &str, message| {
            let path = json::below(root, &format!("{place}{key}"));
            problems.push(Problem::new(path, message));
        };
        for (key, subnets) in [
            ("shapedSubnets", &limits.shaped_subnets),
            ("unshapedSubnets", &limits.unshaped_subnets),
        ] {
            for text in subnets.iter().filter(|text| parse_cidr(text).is_none()) {
                let message = format!("\"{text}\" is no subnet, such as 10.0.0.0/8");
                refuse(key, message);
            }
        }
        if !limits.shaped_subnets.is_empty() && !limits.unshaped_subnets.is_empty() {
            let message = "cannot be there together with shapedSubnets";
            refuse("unshapedSubnets", message.to_owned());
        }
        problems
    }
}

impl WireBandwidth {
    fn directions(&self) -> [Direction; 2] {
        [
            Direction {
                name: "ingress",
                rate: self.ingress_rate,
                burst: self.ingress_burst,
            },
            Direction {
                name: "egress",
                rate: self.egress_rate,
                burst: self.egress_burst,
            },
        ]
    }

    /// Which packets are limited, those with the other side's address at `end`.
    fn selection(&self, end: End) -> Option<Selection> {
        let (written, are_limited) = if self.shaped_subnets.is_empty() {
            (&self.unshaped_subnets, false)
        } else {
            (&self.shaped_subnets, true)
        };
        let subnets = written.iter().filter_map(|text| parse_cidr(text));
        (!written.is_empty()).then(|| Selection {
            subnets: subnets.collect(),
            are_limited,
            end,
        })
    }
}

/// The limit of one direction, as written.
#[derive(Debug, Clone, Copy)]
struct Direction {
    /// How its keys begin.
    name: &'static str,
    /// Bits per second.
    rate: u64,
    /// Bits.
    burst: u64,
}

/// What is wrong with a limit.
struct Flaw {
    /// The end of the key.
    key: &'static str,
    /// What is wrong with it.
    message: String,
    /// What the reference says.
    sentence: &'static str,
}

impl Direction {
    fn flaw(self) -> Option<Flaw> {
        let Self { name, rate, burst } = self;
        let (key, message, sentence) = match (rate, burst) {
            (0, 0) => return None,
            (_, 0) => (
                "Burst",
                format!("must be set together with {name}Rate"),
                "if rate is set, burst must also be set",
            ),
            (0, _) => (
                "Rate",
                format!("must be set together with {name}Burst"),
                "if burst is set, rate must also be set",
            ),
            (_, burst) if burst / 8 >= LARGEST_BURST => (
                "Burst",
                format!("{burst} bits are 4 GB or more, which the kernel cannot count"),
                "burst cannot be more than 4GB",
            ),
            (1..8, _) => (
                "Rate",
                format!("{rate} is less than 8 bits per second"),
                REFUSED,
            ),
            (_, 1..8) => ("Burst", format!("{burst} is less than 8 bits"), REFUSED),
            _ if self.bucket()?.largest_packet() == 0 => (
                "Burst",
                format!(
                    "{burst} bits at {rate} bits per second: the kernel makes a bucket of it that no packet fits"
                ),
                REFUSED,
            ),
            _ => return None,
        };
        Some(Flaw {
            key,
            message,
            sentence,
        })
    }

    /// What the kernel is told: what the reference tells it, so that either can check what the
    /// other set. The reference calculates with floating point numbers of 64 bits, whose
    /// results it cuts to 32, and adds what was cut without regard to a carry.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the reference loses the same digits"
    )]
    fn bucket(self) -> Option<TokenBucket> {
        let (rate, burst) = (self.rate / 8, self.burst / 8);
        if rate == 0 {
            return None;
        }
        let burst = u32::try_from(burst).unwrap_or(u32::MAX);
        let microseconds = cut(f64::from(burst) * 1_000_000.0 / rate as f64);
        Some(TokenBucket {
            rate,
            limit: cut(rate as f64 * LATENCY / 1_000_000.0).wrapping_add(burst),
            buffer: cut(f64::from(microseconds) * TICKS),
        })
    }
}

/// What the reference says where the kernel refuses a bucket.
const REFUSED: &str = "create qdisc: invalid argument";

/// `number` as Go makes an unsigned integer of 32 bits of it: on x86-64 the lower half of a
/// signed one of 64 bits, which is 2⁶³ for what does not fit; elsewhere the nearest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "that is what it is for"
)]
fn cut(number: f64) -> u32 {
    const TOO_MUCH: f64 = 9_223_372_036_854_775_808.0;
    if cfg!(not(target_arch = "x86_64")) {
        return number as u32;
    }
    if number < TOO_MUCH {
        number as i64 as u32
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cni::documented::assert_documented;
    use crate::cni::error::ErrorObject;

    fn resolve(mut config: Value) -> Result<Settings> {
        config["name"] = json!("n");
        config["cniVersion"] = json!("1.1.0");
        Settings::resolve(&Call::to_add(&config.to_string(), "").unwrap())
    }

    #[test]
    fn the_kernel_is_told_what_the_reference_tells_it() {
        let limited = resolve(json!({"ingressRate": 8_000_000, "ingressBurst": 800_000})).unwrap();
        assert_eq!(
            limited.ingress.unwrap().bucket,
            TokenBucket {
                rate: 1_000_000,
                limit: 125_000,
                buffer: 1_562_500
            }
        );
        assert_eq!(limited.egress, None);
        // Kubernetes' burst, as `tc` showed it behind the reference.
        let pod = json!({"egressRate": 1_000_000, "egressBurst": 2_147_483_647});
        assert_eq!(
            resolve(pod).unwrap().egress.unwrap().bucket,
            TokenBucket {
                rate: 125_000,
                limit: 268_438_580,
                buffer: if cfg!(target_arch = "x86_64") {
                    3_489_660_803
                } else {
                    u32::MAX
                },
            }
        );
    }

    #[test]
    fn the_runtimes_limits_count_where_there_are_no_others() {
        let runtime = json!({"bandwidth": {"egressRate": 8000, "egressBurst": 8000}});
        let both = |config: Value| {
            let mut config = config;
            config["runtimeConfig"] = runtime.clone();
            resolve(config).unwrap()
        };
        assert!(both(json!({})).egress.is_some());
        assert!(!both(json!({"ingressRate": 0})).any());
        assert!(!resolve(json!({})).unwrap().any());
        let limit = both(json!({"unshapedSubnets": ["10.0.0.0/8", "fd00::/8"]})).egress;
        assert_eq!(
            limit.unwrap().to_string(),
            "a limit of 1000 bytes per second (1025 bytes queued, burst of 15625000 ticks) \
             but of what goes to 10.0.0.0/8, fd00::/8"
        );
    }

    #[test]
    fn wrong_values_are_named() {
        for (config, code, start, details) in [
            (
                json!({"ingressRate": 8000}),
                7,
                "if rate is set, burst must also be set",
                "ingressBurst: must be set",
            ),
            (
                json!({"egressBurst": 8000}),
                7,
                "if burst is set, rate must also be set",
                "egressRate: must be set",
            ),
            (
                json!({"egressRate": 7, "egressBurst": 8}),
                7,
                REFUSED,
                "egressRate: 7 is less",
            ),
            (
                json!({"egressRate": 80_000_000_000_u64, "egressBurst": 8}),
                7,
                REFUSED,
                "egressBurst: 8 bits at 80000000000 bits per second",
            ),
            (
                json!({"egressRate": 8000, "egressBurst": 34_359_738_360_u64}),
                7,
                "burst cannot be more than 4GB",
                "egressBurst: 34359738360 bits",
            ),
            (
                json!({"runtimeConfig": {"bandwidth": {"ingressRate": 8000}}}),
                7,
                "if rate is set, burst must also be set",
                "runtimeConfig.bandwidth.ingressBurst: ",
            ),
            (
                json!({"ingressRate": -1}),
                6,
                "failed to parse network configuration: ingressRate: ",
                "",
            ),
            (
                json!({"shapedSubnets": ["10.0.0.0/33"]}),
                7,
                "shapedSubnets: \"10.0.0.0/33\" is no subnet",
                "",
            ),
            (
                json!({"runtimeConfig": {"bandwidth": {"unshapedSubnets": ["fd00::"]}}}),
                7,
                "runtimeConfig.bandwidth.unshapedSubnets: \"fd00::\" is no",
                "",
            ),
            (
                json!({"shapedSubnets": ["::/0"], "unshapedSubnets": ["10.0.0.0/8"]}),
                7,
                "unshapedSubnets: cannot be there together",
                "",
            ),
        ] {
            let object = ErrorObject::from_error(&resolve(config).unwrap_err());
            assert_eq!(object.code, code, "{object}");
            assert!(object.msg.starts_with(start), "{object}");
            assert!(object.details.starts_with(details), "{object}");
        }
        let found = validate("plugins[0]", &json!({"ingresRate": 5, "ingressRate": 8000}));
        let paths: Vec<&str> = found.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths, ["plugins[0].ingresRate", "plugins[0].ingressBurst"]);
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Wire>("bandwidth");
    }
}
