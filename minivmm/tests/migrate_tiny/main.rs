//! The tiny guest migrates between two machines, which are threads of this process; it checks its own memory throughout.

mod backups;
mod bitmaps;
mod channels;
mod clones;
mod defer;
mod descriptors;
mod disks;
mod ends;
mod files;
mod handover;
mod machine;
mod moves;
mod older;
mod ownership;
mod postcopy;
mod proxy;
mod requests;
mod snapshot_disks;
mod throttled;
mod tls;
