//! Names under which disks and their dirty bitmaps migrate: QEMU's migration parameter `block-bitmap-mapping`.
//!
//! Facts: `construct_alias_map` in QEMU's migration/block-dirty-bitmap.c, `id_wellformed` in its util/id.c.

use std::sync::{Arc, Mutex};

/// Longest alias, in bytes: its length is sent as one byte.
pub(super) const ALIAS_MAX: usize = u8::MAX as usize;
/// Longest name of a disk, in bytes (`BlockDriverState.node_name`).
const NODE_MAX: usize = 31;
/// Longest name of a bitmap, in bytes (`BDRV_BITMAP_MAX_NAME_SIZE`).
const NAME_MAX: usize = 1023;

/// The mapping that the next migration uses, shared with the section of the bitmaps. Without a mapping, all bitmaps migrate
/// under their own names.
pub type SharedMapping = Arc<Mutex<Option<BitmapMapping>>>;

/// A valid mapping. Disks and bitmaps that are not listed do not migrate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapMapping(Vec<NodeAlias>);

/// Alias of a disk, and of its bitmaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAlias {
    /// Name of the disk on this side.
    pub node: String,
    /// Name of the disk in the stream.
    pub alias: String,
    /// Aliases of its bitmaps.
    pub bitmaps: Vec<BitmapAlias>,
}

/// Alias of a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapAlias {
    /// Name of the bitmap on this side.
    pub name: String,
    /// Name of the bitmap in the stream.
    pub alias: String,
    /// Whether the destination keeps the bitmap in the disk's image. `None`: as the source does.
    pub persistent: Option<bool>,
}

/// Why a mapping is not valid. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum MappingError {
    #[error("The node alias '{0}' is not well-formed")]
    Malformed(String),
    #[error("The node alias '{0}' is longer than {ALIAS_MAX} bytes")]
    LongNodeAlias(String),
    #[error("The node name '{0}' is longer than {NODE_MAX} bytes")]
    LongNode(String),
    #[error("The bitmap alias '{0}' is longer than {ALIAS_MAX} bytes")]
    LongAlias(String),
    #[error("The bitmap name '{0}' is longer than {NAME_MAX} bytes")]
    LongName(String),
    #[error("The node name '{0}' is mapped twice")]
    NodeTwice(String),
    #[error("The node alias '{0}' is used twice")]
    NodeAliasTwice(String),
    #[error("The bitmap '{node}'/'{name}' is mapped twice")]
    NameTwice { node: String, name: String },
    #[error("The bitmap alias '{node}'/'{alias}' is used twice")]
    AliasTwice { node: String, alias: String },
}

impl BitmapMapping {
    /// Checks a mapping, whose names and aliases have to be unique: those of disks in the mapping, those of bitmaps on their disk.
    ///
    /// # Errors
    /// The first error that QEMU finds, which checks the names first.
    pub fn new(nodes: Vec<NodeAlias>) -> Result<Self, MappingError> {
        for (index, node) in nodes.iter().enumerate() {
            node.check()?;
            if nodes.iter().take(index).any(|other| other.node == node.node) {
                return Err(MappingError::NodeTwice(node.node.clone()));
            }
            for (index, bitmap) in node.bitmaps.iter().enumerate() {
                bitmap.check()?;
                if node.bitmaps.iter().take(index).any(|other| other.name == bitmap.name) {
                    return Err(MappingError::NameTwice { node: node.node.clone(), name: bitmap.name.clone() });
                }
            }
        }
        for (index, node) in nodes.iter().enumerate() {
            if nodes.iter().take(index).any(|other| other.alias == node.alias) {
                return Err(MappingError::NodeAliasTwice(node.alias.clone()));
            }
            for (index, bitmap) in node.bitmaps.iter().enumerate() {
                if node.bitmaps.iter().take(index).any(|other| other.alias == bitmap.alias) {
                    return Err(MappingError::AliasTwice { node: node.alias.clone(), alias: bitmap.alias.clone() });
                }
            }
        }
        Ok(Self(nodes))
    }

    /// The aliases, in the order in which they were given.
    pub fn nodes(&self) -> &[NodeAlias] {
        &self.0
    }
}

impl NodeAlias {
    fn check(&self) -> Result<(), MappingError> {
        let mut letters = self.alias.chars();
        let is_well_formed = letters.next().is_some_and(|first| first.is_ascii_alphabetic())
            && letters.all(|letter| letter.is_ascii_alphanumeric() || "-._".contains(letter));
        if !is_well_formed {
            return Err(MappingError::Malformed(self.alias.clone()));
        }
        if self.alias.len() > ALIAS_MAX {
            return Err(MappingError::LongNodeAlias(self.alias.clone()));
        }
        if self.node.len() > NODE_MAX {
            return Err(MappingError::LongNode(self.node.clone()));
        }
        Ok(())
    }
}

impl BitmapAlias {
    fn check(&self) -> Result<(), MappingError> {
        if self.alias.len() > ALIAS_MAX {
            return Err(MappingError::LongAlias(self.alias.clone()));
        }
        if self.name.len() > NAME_MAX {
            return Err(MappingError::LongName(self.name.clone()));
        }
        Ok(())
    }
}
