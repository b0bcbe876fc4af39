//! Nodes that are there at the same time, so that what is measured on one and on another
//! can take turns.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::common::Node;

/// What a stage is told to do.
type Scene = Box<dyn FnOnce(&Node) + Send>;

/// A node of its own, and the thread that is on it.
pub struct Stage {
    scenes: Option<Sender<Scene>>,
    thread: Option<JoinHandle<()>>,
}

impl Stage {
    /// A node without containers.
    pub fn new() -> Self {
        let (scenes, told) = channel::<Scene>();
        let thread = std::thread::spawn(move || {
            let node = Node::new();
            for scene in told {
                scene(&node);
            }
        });
        Self {
            scenes: Some(scenes),
            thread: Some(thread),
        }
    }

    /// Runs `work` on the node, to its end.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce(&Node) -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        let scene = Box::new(move |node: &Node| drop(answer.send(work(node))));
        let scenes = self.scenes.as_ref().expect("there until it is dropped");
        scenes.send(scene).expect("the node's thread lives");
        answered.recv().expect("the work came to an end")
    }
}

impl Drop for Stage {
    /// The node's files are gone when this returns; its namespaces soon after.
    fn drop(&mut self) {
        drop(self.scenes.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// A container without a network.
#[derive(Debug, Clone)]
pub struct Container {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// The port of the host that leads to it.
    pub port: u16,
}

impl Container {
    /// Number `number` of the node that the calling thread is on, in a new namespace. `ip
    /// netns add` does the same in three times the time.
    pub fn new(number: u16) -> Self {
        let id = format!("c{number}");
        let netns = format!("/run/netns/{id}");
        std::fs::write(&netns, "").expect("make the namespace's file");
        let bind = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace");
            let (own, none) = ("/proc/thread-self/ns/net", None::<&str>);
            mount(Some(own), netns.as_str(), none, MsFlags::MS_BIND, none)
                .expect("name a network namespace");
        };
        // The thread ends in there; this one stays where it is.
        std::thread::scope(|scope| scope.spawn(bind).join()).expect("a namespace");
        Self {
            id,
            netns,
            port: 10_000 + number,
        }
    }
}
