//! virtio-net (virtio 1.2 §5.1): one pair of queues and a control queue on a [`Backend`].

mod announce;
mod attachment;
mod backend;
mod control;
mod frame;
mod in_transit;
mod segment;
mod state;
mod stream;
mod tap;
mod vhost;

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use virtio_bindings::virtio_net::*;
use vmstate::codec::{Reader, Writer};
use vmstate::error::{Error, ErrorKind, Result};
use vmstate::schema::{Description, MaybeStatic};
use vmstate::{VmState, Wire};

use self::announce::Announcement;
pub use self::announce::Announcing;
pub use self::attachment::{AttachError, Attachment};
pub use self::backend::{Backend, DataPlane, Offloads};
use self::frame::FRAME_MAX;
pub use self::in_transit::InTransit;
pub use self::state::NetState;
pub use self::stream::{Stream, StreamError};
pub use self::tap::{Tap, TapError};
pub use self::vhost::{Vhost, VhostError};
use super::{Broken, Chain, ConfigSpace, Interrupt, Io, Limiter, Model, Ring, VIRTIO_FIELD};
use crate::memory::GuestMemory;

/// Bytes of the header before each frame, with `num_buffers` (always there in virtio 1).
pub const HEADER: usize = 12;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

/// Most chains of one queue that are handled before the next queue.
const BATCH: usize = 256;

/// Features that do not depend on the backend.
const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_RX
    | 1 << VIRTIO_NET_F_CTRL_VLAN
    | 1 << VIRTIO_NET_F_CTRL_RX_EXTRA
    | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR
    | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;

/// A network card on a backend.
pub struct Net<B> {
    backend: B,
    state: NetState,
    /// MAC address after reset.
    mac: [u8; 6],
    frame: Box<[u8]>,
    /// Length of the frame in `frame`, which waits for buffers of the guest.
    waiting: Option<usize>,
    limits: Directions,
    /// Announcements on arrival.
    announcing: Announcing,
    announcement: Option<Announcement>,
}

/// Rate limits of both directions.
#[derive(Clone, Debug, Default)]
pub struct Directions {
    /// Limit of frames for the guest.
    pub receive: Limiter,
    /// Limit of frames from the guest.
    pub transmit: Limiter,
}

impl<B: Backend> Net<B> {
    /// Makes a card with the address `mac`.
    pub fn new(backend: B, mac: [u8; 6]) -> Self {
        let state = Self::fresh(&backend, mac);
        Self {
            backend,
            state,
            mac,
            frame: vec![0; FRAME_MAX].into(),
            waiting: None,
            limits: Directions::default(),
            announcing: Announcing::ONCE,
            announcement: None,
        }
    }

    /// Sets the card's limits.
    pub fn within(self, limits: Directions) -> Self {
        Self { limits, ..self }
    }

    /// Sets the announcements on arrival.
    pub fn announces(&mut self, with: Announcing) {
        self.announcing = with;
    }

    /// Begins announcements, in place of those under way.
    pub fn announce(&mut self, with: Announcing, interrupt: &Interrupt) {
        self.announcement = Announcement::begin(with);
        self.send_announcement(interrupt);
    }

    /// Announces the guest if it is time, and asks the guest to announce itself if it can.
    fn send_announcement(&mut self, interrupt: &Interrupt) {
        let Some(announcement) = self.announcement.take_if(|announcement| announcement.wait().is_zero()) else {
            return;
        };
        self.announcement = announcement.record_sent();
        // Without the announcement, the network learns from the guest's next frame.
        let _ = self.backend.send(&frame::announcement(self.state.mac));
        let able = [VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_CTRL_VQ];
        if able.iter().all(|bit| self.state.negotiated(*bit)) {
            self.state.status |= VIRTIO_NET_S_ANNOUNCE as u16;
            interrupt.raise_config();
        }
    }

    fn fresh(backend: &B, mac: [u8; 6]) -> NetState {
        NetState::new(mac, backend.offloads().has(VIRTIO_NET_F_GUEST_UFO))
    }

    /// Returns the frames in transit of the paused card.
    pub fn in_transit(&self) -> InTransit {
        let waiting = self.waiting.map_or_else(Vec::new, |len| self.frame[..len].to_vec());
        InTransit { waiting, ..self.backend.in_transit() }
    }

    /// Continues with the frames in transit of another process, before the card resumes.
    pub fn take_over(&mut self, from: InTransit) {
        let len = from.waiting.len();
        if (HEADER..=FRAME_MAX).contains(&len) {
            self.frame[..len].copy_from_slice(&from.waiting);
            self.waiting = Some(len);
        }
        self.backend.take_over(from);
    }

    /// Returns the time until the guest may send the next frame, if it may not now.
    fn transmit_wait(&self) -> Option<Duration> {
        self.limits.transmit.wait().max(self.backend.wait())
    }

    /// Notifies the guest if the network was connected or disconnected.
    fn follow_link(&mut self, interrupt: &Interrupt, config: &ConfigSpace) {
        let up = VIRTIO_NET_S_LINK_UP as u16;
        let status = self.state.status & !up | if self.backend.is_up() { up } else { 0 };
        if self.state.status != status {
            self.state.status = status;
            config.publish(self.config());
            if self.state.negotiated(VIRTIO_NET_F_STATUS) {
                interrupt.raise_config();
            }
        }
    }

    fn apply_offloads(&mut self) {
        // The backend supports every set that gets here; if this fails nevertheless, frames come without offloads.
        let _ = self.backend.set_offloads(Offloads(self.state.curr_guest_offloads));
    }

    /// Sends frames of the guest; returns true if there were any.
    fn transmit(&mut self, io: &mut Io<'_>) -> std::result::Result<bool, Broken> {
        let memory = io.memory;
        let mut some = false;
        for _ in 0..BATCH {
            if io.pausing() || self.transmit_wait().is_some() {
                break;
            }
            let Some(mut chain) = io.rings[TRANSMIT].pop(memory)? else { break };
            let len = chain.readable.len();
            self.limits.transmit.charge(1, len.min(FRAME_MAX as u64));
            if len < HEADER as u64 {
                return Err(Broken::new(format_args!("a frame to send has {len} bytes, less than its header")));
            }
            // Longer than any frame: dropped.
            if len <= FRAME_MAX as u64 {
                let mut frame = vec![0; len as usize];
                chain.readable.read(memory, &mut frame)?;
                let _ = self.backend.send(&frame);
            }
            io.rings[TRANSMIT].complete(memory, chain.head, 0)?;
            some = true;
        }
        if some {
            io.rings[TRANSMIT].signal(memory, io.interrupt)?;
        }
        Ok(some)
    }

    /// Puts frames from the backend into buffers of the guest; returns true if there were any.
    fn receive(&mut self, io: &mut Io<'_>) -> std::result::Result<bool, Broken> {
        let mut some = false;
        for _ in 0..BATCH {
            if io.pausing() {
                break;
            }
            let len = match self.waiting {
                Some(_) if !io.rings[RECEIVE].has_more(io.memory)? => break,
                Some(len) => len,
                None if self.limits.receive.wait().is_some() => break,
                None => match self.backend.receive(&mut self.frame) {
                    Ok(len) if len >= HEADER => len,
                    Ok(_) => {
                        some = true;
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => break,
                },
            };
            if !self.deliver(len, io)? {
                self.waiting = Some(len);
                break;
            }
            self.waiting = None;
            self.limits.receive.charge(1, len as u64);
            some = true;
        }
        if some {
            io.rings[RECEIVE].signal(io.memory, io.interrupt)?;
        }
        Ok(some)
    }

    /// Puts one frame into as many buffers as it needs, or drops it; returns false and takes nothing if the guest has too few.
    fn deliver(&mut self, len: usize, io: &mut Io<'_>) -> std::result::Result<bool, Broken> {
        let ring = &mut io.rings[RECEIVE];
        let mergeable = self.state.negotiated(VIRTIO_NET_F_MRG_RXBUF);
        let mut buffers = Vec::new();
        let (mut room, mut descriptors) = (0, 0);
        while room < len as u64 {
            let Some(chain) = ring.pop(io.memory)? else {
                ring.put_back_until_more(buffers.len() as u16);
                return Ok(false);
            };
            let size = chain.writable.len();
            if size < HEADER as u64 {
                return Err(Broken::new("a receive buffer is smaller than a frame's header"));
            }
            room += size;
            descriptors += chain.descriptors;
            buffers.push((chain.head, chain.writable));
            // The frame does not fit the buffer, or would need more pieces than the device looks at: the frame is dropped, and
            // the buffers stay for the next one.
            if room < len as u64 && (!mergeable || descriptors >= Chain::DESCRIPTORS_MAX) {
                ring.put_back(buffers.len() as u16);
                return Ok(true);
            }
        }
        frame::set_num_buffers(&mut self.frame, buffers.len() as u16);
        let mut rest = &self.frame[..len];
        let mut used = Vec::with_capacity(buffers.len());
        for (head, mut buffer) in buffers {
            let (part, after) = rest.split_at(rest.len().min(buffer.len() as usize));
            buffer.write(io.memory, part)?;
            used.push((head, part.len() as u32));
            rest = after;
        }
        ring.complete_all(io.memory, &used)?;
        Ok(true)
    }

    /// Starts the data plane, which moves the frames. Commands and interrupts are left to this thread.
    fn process_commands(&mut self, io: &mut Io<'_>) -> std::result::Result<(), Broken> {
        if let Some(plane) = self.backend.data_plane() {
            plane.start(io.rings, self.state.features, io.kicks)?;
            if plane.take_interrupt()? {
                io.interrupt.raise_queue();
            }
        }
        self.follow_link(io.interrupt, io.config);
        loop {
            io.rings[CONTROL].quiet(io.memory)?;
            while self.control(io)? {}
            if !io.rings[CONTROL].listen(io.memory)? || io.pausing() {
                return Ok(());
            }
        }
    }

    /// Carries out commands; returns true if there were any.
    fn control(&mut self, io: &mut Io<'_>) -> std::result::Result<bool, Broken> {
        let memory = io.memory;
        let mut some = false;
        for _ in 0..BATCH {
            if io.pausing() {
                break;
            }
            let Some(mut chain) = io.rings[CONTROL].pop(memory)? else { break };
            let Some(mut answer) = chain.writable.split_last() else {
                return Err(Broken::new("a control command has no place for its answer"));
            };
            let mut command = vec![0; chain.readable.len().min(control::COMMAND_MAX) as usize];
            chain.readable.read(memory, &mut command)?;
            let offloads = self.state.curr_guest_offloads;
            let done = chain.readable.is_empty() && control::execute(&mut self.state, &command);
            if self.state.curr_guest_offloads != offloads {
                self.apply_offloads();
            }
            io.config.publish(self.config());
            answer.write(memory, &[if done { VIRTIO_NET_OK as u8 } else { VIRTIO_NET_ERR as u8 }])?;
            io.rings[CONTROL].complete(memory, chain.head, 1)?;
            some = true;
        }
        if some {
            io.rings[CONTROL].signal(memory, io.interrupt)?;
        }
        Ok(some)
    }
}

impl<B: Backend> Model for Net<B> {
    const ID: u32 = 1;
    const QUEUES: &'static [u16] = &[256, 256, 64];

    fn features(&self) -> u64 {
        FEATURES | self.backend.offloads().features()
    }

    /// virtio 1.2 §5.1.4, the fields whose features are offered: address and status.
    fn config(&self) -> Vec<u8> {
        [&self.state.mac[..], &self.state.status.to_le_bytes()].concat()
    }

    /// In virtio 1 the driver changes nothing in the configuration space.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn agree(&mut self, features: u64) {
        self.state.features = features;
        self.state.mergeable_rx_bufs = u32::from(self.state.negotiated(VIRTIO_NET_F_MRG_RXBUF));
        self.state.curr_guest_offloads = Offloads::of(features).0;
        self.apply_offloads();
    }

    fn reset(&mut self) {
        self.state = Self::fresh(&self.backend, self.mac);
        self.waiting = None;
        self.apply_offloads();
    }

    fn process(&mut self, io: &mut Io<'_>) -> std::result::Result<Option<Duration>, Broken> {
        if self.backend.data_plane().is_some() {
            return self.process_commands(io).map(|()| None);
        }
        loop {
            for ring in io.rings.iter_mut().filter(|ring| ring.is_ready()) {
                ring.quiet(io.memory)?;
            }
            while self.control(io)? | self.transmit(io)? | self.receive(io)? {}
            self.follow_link(io.interrupt, io.config);
            // A direction that has to wait is not checked before. A useless later check is harmless.
            let [receive, transmit] = [self.limits.receive.wait(), self.transmit_wait()];
            // Kicks of the receive queue are needed only while a frame waits for buffers.
            let mut more = false;
            for (index, ring) in io.rings.iter_mut().enumerate().filter(|(_, ring)| ring.is_ready()) {
                if index != RECEIVE || self.waiting.is_some() {
                    more |= ring.listen(io.memory)? && (index != TRANSMIT || transmit.is_none());
                }
            }
            if !more || io.pausing() {
                return Ok(receive.into_iter().chain(transmit).min());
            }
        }
    }

    type State = NetState;

    const DESCRIPTION: &'static Description =
        &Description::new(MaybeStatic::Static("virtio-net"), 11, 11, VIRTIO_FIELD, MaybeStatic::Static(&[]));

    fn state(&self) -> NetState {
        self.state.clone()
    }

    fn set_state(&mut self, state: NetState) {
        let agreed = &self.state;
        // Without the feature to choose, the negotiated offloads hold, and the stream has none (QEMU's virtio_net_post_load).
        let offloads = if agreed.chooses_offloads() { state.curr_guest_offloads } else { agreed.curr_guest_offloads };
        self.state = NetState { features: agreed.features, curr_guest_offloads: offloads, ..state };
        self.apply_offloads();
    }

    fn save_state(&mut self, out: &mut Writer) -> Result<()> {
        self.state.save(out)
    }

    fn load_state(&self, _config: &[u8], features: u64, input: &mut Reader<'_>) -> Result<NetState> {
        let mut state = NetState { features, ..Self::fresh(&self.backend, self.mac) };
        state.load_version(input, NetState::DESCRIPTION.version)?;
        let missing = state.curr_guest_offloads & !self.backend.offloads().0;
        if missing != 0 {
            let what = format!("the guest relies on offloads {missing:#x} that the network here does not have");
            return Err(Error::new(ErrorKind::Incompatible, what).at(input.offset()));
        }
        Ok(state)
    }

    fn arrive(&mut self, interrupt: &Interrupt) {
        self.announce(self.announcing, interrupt);
    }

    fn due(&mut self, interrupt: &Interrupt, config: &ConfigSpace) -> Option<Duration> {
        if self.announcement.is_some() {
            self.send_announcement(interrupt);
            config.publish(self.config());
        }
        self.announcement.as_ref().map(Announcement::wait)
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.backend.data_plane().map_or_else(|| self.backend.fd(), DataPlane::fd))
    }

    fn handles_kicks(&self, queue: usize) -> bool {
        queue == CONTROL || self.backend.data_plane().is_none()
    }

    fn rest(
        &mut self,
        rings: &mut [Ring],
        memory: &GuestMemory,
        interrupt: &Interrupt,
    ) -> std::result::Result<(), Broken> {
        let Some(plane) = self.backend.data_plane() else { return Ok(()) };
        plane.stop(rings, memory)?;
        // The data plane has stopped, so this is its last news; the pending interrupt migrates with the guest.
        if plane.take_interrupt()? {
            interrupt.raise_queue();
        }
        Ok(())
    }
}

impl<B> fmt::Debug for Net<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("state", &self.state).finish_non_exhaustive()
    }
}
