//! Listings that are read once for many questions.
//!
//! Whoever asks what is missing of 250 attachments would otherwise have every table listed
//! 250 times. As long as a [`Memo`] exists, the questions of its thread are answered from
//! what the first of them read.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;

use anyhow::Result;

type Listings = HashMap<(TypeId, String), Rc<dyn Any>>;

thread_local! {
    static LISTINGS: RefCell<Option<Listings>> = const { RefCell::new(None) };
}

/// Keeps listings for this thread until it is dropped.
#[derive(Debug)]
pub struct Memo(PhantomData<*const ()>);

impl Memo {
    /// Starts to keep listings.
    pub fn start() -> Self {
        LISTINGS.set(Some(Listings::new()));
        Self(PhantomData)
    }

    /// Forgets what this thread has read, because it has been changed.
    pub fn forget() {
        LISTINGS.with_borrow_mut(|listings| {
            if let Some(listings) = listings {
                listings.clear();
            }
        });
    }
}

impl Drop for Memo {
    fn drop(&mut self) {
        LISTINGS.set(None);
    }
}

/// The listing called `name`: what `read` returns, or returned before under this name, if a
/// [`Memo`] keeps it. For questions only: whoever changes a table must read it anew.
///
/// # Errors
/// Those of `read`, which are not kept.
pub fn listing<T: 'static>(name: &str, read: impl FnOnce() -> Result<T>) -> Result<Rc<T>> {
    let key = (TypeId::of::<T>(), name.to_owned());
    let kept = LISTINGS.with_borrow(|listings| listings.as_ref()?.get(&key).cloned());
    if let Some(kept) = kept.and_then(|kept| kept.downcast().ok()) {
        return Ok(kept);
    }
    let read = Rc::new(read()?);
    LISTINGS.with_borrow_mut(|listings| {
        if let Some(listings) = listings {
            listings.insert(key, Rc::<T>::clone(&read));
        }
    });
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn each_listing_is_read_once_until_it_is_forgotten() {
        let reads = Cell::new(0);
        let ask = |name: &str| {
            let read = || {
                reads.set(reads.get() + 1);
                Ok(name.len())
            };
            *listing(name, read).unwrap()
        };
        assert_eq!((ask("nat"), ask("nat"), reads.get()), (3, 3, 2));
        let memo = Memo::start();
        assert_eq!((ask("nat"), ask("nat"), reads.get()), (3, 3, 3));
        assert_eq!((ask("filter"), reads.get()), (6, 4));
        // One name may stand for listings of several types.
        assert_eq!(*listing("nat", || Ok("text")).unwrap(), "text");
        Memo::forget();
        assert_eq!((ask("nat"), reads.get()), (3, 5));
        drop(memo);
        assert_eq!((ask("nat"), reads.get()), (3, 6));
        assert!(listing::<u8>("x", || anyhow::bail!("refused")).is_err());
    }
}
