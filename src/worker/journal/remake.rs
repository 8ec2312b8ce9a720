//! A folder that somebody deleted under a living writer: made anew, with everything that is still open.

use std::fs;
use std::io;

use tokio::time::Instant;

use super::{Journal, KEEP_SEGMENT, at, claim, gate, segment};

impl Journal {
    /// Makes folder, lock and segment anew where one of them is gone. What ran, and crashes, are written down again;
    /// answers that lay there are lost.
    ///
    /// # Errors
    ///
    /// Whatever the file system answers; the next call tries again.
    pub(super) fn remake(&mut self) -> io::Result<()> {
        // Looked for by name, which also tells of a folder that was moved away.
        let lock = self.lock_path(&self.writer);
        let written = segment::path(&self.folder, &self.writer, self.number);
        if lock.try_exists().map_err(|error| at(&lock, &error))?
            && written.try_exists().map_err(|error| at(&written, &error))?
        {
            return Ok(());
        }
        fs::create_dir_all(&self.folder).map_err(|error| at(&self.folder, &error))?;
        let gate = gate(&self.folder)?;
        self._lock = claim(&lock)?;
        // Their places are void, also those of lines that were not written yet.
        self.ledger.forget_before(u64::MAX);
        self.older.clear();
        self.siblings.clear();
        drop(gate);
        self.rotate()?;
        // What ran stands at the head.
        self.lines.clear();
        self.answers.clear();
        tracing::error!(folder = %self.folder.display(), "the journal was deleted, and is made anew");
        self.remade = Some(Instant::now());
        Ok(())
    }

    /// Tells whether the journal was deleted so lately that what was lost with it may still be asked for.
    pub(in super::super) fn was_remade(&self) -> bool {
        self.remade.is_some_and(|remade| remade.elapsed() < KEEP_SEGMENT)
    }
}
