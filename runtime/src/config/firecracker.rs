//! What Firecracker's configuration can say and Ringlet cannot do.
//!
//! Tools write such fields with the value that asks for nothing, so that is accepted; anything else is refused by the
//! field's name. Fields that neither knows are left to the structure's own `Deserialize`, which refuses them.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A field of Firecracker that Ringlet does not have. `null` and an empty list ask for nothing in any of them.
pub(super) struct Foreign {
    name: &'static str,
    /// What else asks for nothing.
    off: fn(&Value) -> bool,
    /// What to do instead, after the refusal.
    instead: &'static str,
}

impl Foreign {
    const fn new(name: &'static str) -> Self {
        Self { name, off: |_| false, instead: "" }
    }

    const fn off(self, off: fn(&Value) -> bool) -> Self {
        Self { off, ..self }
    }

    const fn instead(self, instead: &'static str) -> Self {
        Self { instead, ..self }
    }

    fn asks_for_nothing(&self, value: &Value) -> bool {
        value.is_null() || value.as_array().is_some_and(Vec::is_empty) || (self.off)(value)
    }
}

/// An object of which nothing is required, and nothing is said.
fn empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn no(value: &Value) -> bool {
    *value == false
}

/// Of the whole configuration.
pub(super) const SECTIONS: &[Foreign] = &[
    Foreign::new("balloon"),
    Foreign::new("cpu-config"),
    Foreign::new("logger").off(empty).instead("; use --log-level"),
    Foreign::new("memory-hotplug"),
    Foreign::new("metrics").instead("; use --metrics"),
    Foreign::new("mmds-config"),
    Foreign::new("pmem"),
    Foreign::new("serial").off(empty),
];

/// Of `machine-config`.
pub(super) const MACHINE: &[Foreign] = &[
    Foreign::new("cpu_template").off(|value| value == "None"),
    Foreign::new("smt").off(no),
    Foreign::new("track_dirty_pages").off(no),
];

/// Of each of `drives`.
pub(super) const DRIVE: &[Foreign] = &[Foreign::new("socket").instead("; it has no vhost-user")];

/// Of each of `network-interfaces`.
pub(super) const INTERFACE: &[Foreign] = &[Foreign::new("allow_mmds_requests").off(no)];

/// Of `vsock`. The name has no meaning, and Firecracker is about to drop it.
pub(super) const VSOCK: &[Foreign] = &[Foreign::new("vsock_id").off(Value::is_string)];

/// A structure that Firecracker has more fields of.
pub(super) trait Known<'de>: Sized {
    const FOREIGN: &'static [Foreign];

    /// Reads the fields that Ringlet has.
    fn read<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;
}

/// Reads `T`, leaving out the fields that are Firecracker's alone and ask for nothing.
pub(super) fn read<'de, T: Known<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    from.deserialize_map(Object(PhantomData))
}

/// A field that may be `null`, as in Firecracker, which is the same as absent.
pub(super) fn or_default<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(from).map(Option::unwrap_or_default)
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Known<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::read(MapAccessDeserializer::new(Ours { map, foreign: T::FOREIGN }))
    }
}

/// The fields that are not Firecracker's alone.
struct Ours<A> {
    map: A,
    foreign: &'static [Foreign],
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Ours<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<String>()? {
            let Some(field) = self.foreign.iter().find(|field| field.name == key) else {
                return seed.deserialize(key.into_deserializer()).map(Some);
            };
            if !field.asks_for_nothing(&self.map.next_value()?) {
                let Foreign { name, instead, .. } = field;
                return Err(A::Error::custom(format!("{name}: not supported by Ringlet{instead}")));
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// `Serialize` as derived, and `Deserialize` that knows the fields in `$foreign`. The structure derives both with
/// `#[serde(remote = "Self")]`.
macro_rules! known_to_firecracker {
    ($type:ident, $foreign:expr) => {
        impl<'de> $crate::config::firecracker::Known<'de> for $type {
            const FOREIGN: &'static [$crate::config::firecracker::Foreign] = $foreign;

            fn read<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::deserialize(from)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $crate::config::firecracker::read(from)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, to)
            }
        }
    };
}

pub(super) use known_to_firecracker;

#[cfg(test)]
#[path = "firecracker_test.rs"]
mod tests;
