//! The target's most likely tokens at every token of the answers, on disk.
//!
//! On disk: the magic `PLTOPK01`, K as u32, then for each token K ids (u32) and K natural
//! log-probabilities (f32), most likely first; all little-endian.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::TrainError;

const MAGIC: &[u8; 8] = b"PLTOPK01";
/// Bytes before the first record.
const HEADER: usize = MAGIC.len() + size_of::<u32>();
/// Bytes of a token's id and its log-probability.
const PAIR: usize = size_of::<u32>() + size_of::<f32>();

/// Distributions in the order of the answers' tokens, read as they are needed: the file has to stay as it is.
#[derive(Debug)]
pub(super) struct TopK {
    k: usize,
    records: usize,
    file: File,
}

impl TopK {
    /// Opens a file, all of whose ids have to be below `vocab_size`.
    ///
    /// # Errors
    /// [`TrainError::File`] where it is none of this kind, cut short or of another vocabulary.
    pub(super) fn open(path: &Path, vocab_size: usize) -> Result<Self, TrainError> {
        let error = |reason: String| TrainError::file(path, reason);
        let io = |e: std::io::Error| TrainError::file(path, e);
        let file = File::open(path).map_err(io)?;
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let mut header = Vec::new();
        Read::by_ref(&mut reader).take(HEADER as u64).read_to_end(&mut header).map_err(io)?;
        let k = header
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.first_chunk::<4>())
            .map(|k| u32::from_le_bytes(*k) as usize)
            .filter(|k| (1..=1024).contains(k))
            .ok_or_else(|| error("is no file of top-k log-probabilities".into()))?;
        let bytes = (file.metadata().map_err(io)?.len() as usize).saturating_sub(HEADER);
        if !bytes.is_multiple_of(k * PAIR) {
            return Err(error(format!("{bytes} bytes are no whole records")));
        }
        let records = bytes / (k * PAIR);
        let mut record = vec![0; k * PAIR];
        for index in 0..records {
            reader.read_exact(&mut record).map_err(io)?;
            if let Some((id, _)) = pairs(&record).find(|(id, _)| *id as usize >= vocab_size) {
                return Err(error(format!(
                    "record {index}: token {id} is outside the model's vocabulary"
                )));
            }
        }
        Ok(Self { k, records, file })
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.records
    }

    /// Ids and probabilities at one token.
    pub(super) fn at(&self, record: usize) -> std::io::Result<Vec<(u32, f32)>> {
        let mut bytes = vec![0; self.k * PAIR];
        let start = HEADER + record * bytes.len();
        self.file.read_exact_at(&mut bytes, start as u64)?;
        Ok(pairs(&bytes).map(|(id, logprob)| (id, logprob.exp())).collect())
    }
}

/// The ids and log-probabilities of a record.
fn pairs(record: &[u8]) -> impl Iterator<Item = (u32, f32)> {
    let (ids, logprobs) = record.split_at(record.len() / 2);
    let ids = ids.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    ids.zip(logprobs.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)))
}

/// Appends to a file of distributions.
#[derive(Debug)]
pub struct TopKWriter {
    k: usize,
    file: BufWriter<File>,
}

impl TopKWriter {
    /// Opens a file for records of `k` tokens and drops all after the first `records`.
    ///
    /// # Errors
    /// [`TrainError::File`] where the file has fewer records or another K.
    pub fn open(path: &Path, k: usize, records: usize) -> Result<Self, TrainError> {
        let io = |e: std::io::Error| TrainError::file(path, e);
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let mut header = MAGIC.to_vec();
        header.extend((k as u32).to_le_bytes());
        let mut found = Vec::new();
        Read::by_ref(&mut file).take(HEADER as u64).read_to_end(&mut found).map_err(io)?;
        if records > 0 && found != header {
            return Err(TrainError::file(
                path,
                format!("has no records of {k} tokens to go on from"),
            ));
        }
        let length = (HEADER + records * k * PAIR) as u64;
        if file.metadata().map_err(io)?.len() < length && records > 0 {
            return Err(TrainError::file(path, "has fewer records than there are answers"));
        }
        file.rewind().and_then(|()| file.write_all(&header)).map_err(io)?;
        file.set_len(length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(io)?;
        Ok(Self { k, file: BufWriter::new(file) })
    }

    /// Appends the distribution at one token; short ones are filled up with probability 0.
    ///
    /// # Errors
    /// What the file system says.
    pub fn push(&mut self, top: &[(u32, f32)]) -> std::io::Result<()> {
        let at = |i: usize| top.get(i).copied().unwrap_or((0, f32::NEG_INFINITY));
        for i in 0..self.k {
            self.file.write_all(&at(i).0.to_le_bytes())?;
        }
        for i in 0..self.k {
            self.file.write_all(&at(i).1.to_le_bytes())?;
        }
        Ok(())
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// What the file system says.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(records: &[&[(u32, f32)]]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = TopKWriter::open(file.path(), 2, 0).unwrap();
        records.iter().for_each(|record| writer.push(record).unwrap());
        writer.flush().unwrap();
        file
    }

    #[test]
    fn what_is_written_reads_back() {
        let file = written(&[&[(3, 0.0)], &[(1, 0.5f32.ln()), (9, 0.25f32.ln())]]);
        let top = TopK::open(file.path(), 10).unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(top.at(0).unwrap(), [(3, 1.0), (0, 0.0)]);
        assert_eq!(top.at(1).unwrap(), [(1, 0.5), (9, 0.25)]);
    }

    /// Another model's tokens, half a record, another file, and one that is cut while it is read.
    #[test]
    fn what_does_not_fit_is_refused() {
        let file = written(&[&[(3, 0.0)], &[(1, 0.0), (9, 0.0)]]);
        let refused = |vocab| TopK::open(file.path(), vocab).unwrap_err().to_string();
        assert!(refused(9).contains("record 1: token 9 is outside"), "{}", refused(9));
        let open = TopK::open(file.path(), 10).unwrap();
        file.as_file().set_len(HEADER as u64 + 17).unwrap();
        assert!(open.at(1).is_err());
        assert!(refused(10).contains("17 bytes are no whole records"), "{}", refused(10));
        file.as_file().set_len(5).unwrap();
        assert!(refused(10).contains("is no file of top-k"), "{}", refused(10));
    }
}
