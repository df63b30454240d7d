//! Reads a buffer that nobody vouches for.

use std::cell::Cell;

use super::FlatbufferError;

/// Tables within tables. ODF's own events need 9; each level of a nested column type adds one.
pub(super) const DEPTH_MAX: u8 = 64;

/// How many times its own size a buffer may make us read. An honest one is read once; one whose encoder shares equal
/// strings somewhat more often.
const AMPLIFICATION_MAX: usize = 16;

/// The bytes and what may still be read of them.
#[derive(Debug)]
pub(crate) struct Buffer<'a> {
    bytes: &'a [u8],
    budget: Cell<usize>,
}

impl<'a> Buffer<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let budget = Cell::new(bytes.len().saturating_mul(AMPLIFICATION_MAX));
        Self { bytes, budget }
    }

    /// The root table.
    pub(crate) fn root(&self) -> Result<Table<'_>, FlatbufferError> {
        Table::at(self, self.follow(0, "root table")?, 0)
    }

    fn slice(&self, at: usize, len: usize, what: &'static str) -> Result<&[u8], FlatbufferError> {
        let end = at.checked_add(len);
        end.and_then(|end| self.bytes.get(at..end)).ok_or(FlatbufferError::OutOfBounds { what, at })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], FlatbufferError> {
        let array = self.bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
        array.copied().ok_or(FlatbufferError::OutOfBounds { what: "a value", at })
    }

    /// Where the reference at `at` points: always forward, so that following references ends.
    fn follow(&self, at: usize, what: &'static str) -> Result<usize, FlatbufferError> {
        let distance = u32::from_le_bytes(self.array(at)?) as usize;
        match at.checked_add(distance) {
            Some(target) if distance >= 4 && target < self.bytes.len() => Ok(target),
            _ => Err(FlatbufferError::OutOfBounds { what, at }),
        }
    }

    fn spend(&self, bytes: usize) -> Result<(), FlatbufferError> {
        let left = self.budget.get().checked_sub(bytes);
        self.budget.set(left.ok_or(FlatbufferError::Amplified)?);
        Ok(())
    }

    fn vector(&self, at: usize, item_size: usize) -> Result<&[u8], FlatbufferError> {
        let count = u32::from_le_bytes(self.array(at)?) as usize;
        let len = count.checked_mul(item_size).ok_or(FlatbufferError::OutOfBounds { what: "a vector", at })?;
        let items = self.slice(at + 4, len, "a vector")?;
        self.spend(len + 4)?;
        Ok(items)
    }

    fn text(&self, at: usize) -> Result<String, FlatbufferError> {
        let bytes = self.vector(at, 1)?.to_vec();
        String::from_utf8(bytes).map_err(|_| FlatbufferError::NotUtf8 { at })
    }
}

/// A table; fields are named by their vtable slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'b> {
    buffer: &'b Buffer<'b>,
    at: usize,
    vtable: &'b [u8],
    depth: u8,
}

impl<'b> Table<'b> {
    fn at(buffer: &'b Buffer<'_>, at: usize, depth: u8) -> Result<Self, FlatbufferError> {
        if depth > DEPTH_MAX {
            return Err(FlatbufferError::TooDeep);
        }
        let out_of_bounds = FlatbufferError::OutOfBounds { what: "a vtable", at };
        let distance = i64::from(i32::from_le_bytes(buffer.array(at)?));
        let start = i64::try_from(at).ok().map(|at| at - distance);
        let start = start.and_then(|start| usize::try_from(start).ok()).ok_or(out_of_bounds)?;
        let len = usize::from(u16::from_le_bytes(buffer.array(start)?));
        let vtable = buffer.slice(start, len, "a vtable")?;
        buffer.spend(4)?;
        Ok(Self { buffer, at, vtable, depth })
    }

    /// Where field `slot` is, if it is there.
    fn position(&self, slot: usize) -> Option<usize> {
        let entry = self.vtable.get(4 + 2 * slot..6 + 2 * slot)?;
        let distance = u16::from_le_bytes(entry.try_into().ok()?);
        (distance != 0).then(|| self.at + usize::from(distance))
    }

    fn scalar<const N: usize>(&self, slot: usize) -> Result<Option<[u8; N]>, FlatbufferError> {
        self.position(slot).map(|at| self.buffer.array(at)).transpose()
    }

    /// The target of a reference.
    fn target(&self, slot: usize, what: &'static str) -> Result<Option<usize>, FlatbufferError> {
        self.position(slot).map(|at| self.buffer.follow(at, what)).transpose()
    }

    pub(crate) fn bool(&self, slot: usize) -> Result<Option<bool>, FlatbufferError> {
        Ok(self.scalar(slot)?.map(|[byte]| byte != 0))
    }

    pub(crate) fn i16(&self, slot: usize) -> Result<Option<i16>, FlatbufferError> {
        Ok(self.scalar(slot)?.map(i16::from_le_bytes))
    }

    pub(crate) fn i32(&self, slot: usize) -> Result<Option<i32>, FlatbufferError> {
        Ok(self.scalar(slot)?.map(i32::from_le_bytes))
    }

    pub(crate) fn u32(&self, slot: usize) -> Result<Option<u32>, FlatbufferError> {
        Ok(self.scalar(slot)?.map(u32::from_le_bytes))
    }

    pub(crate) fn i64(&self, slot: usize) -> Result<Option<i64>, FlatbufferError> {
        Ok(self.scalar(slot)?.map(i64::from_le_bytes))
    }

    pub(crate) fn u64(&self, slot: usize) -> Result<Option<u64>, FlatbufferError> {
        Ok(self.scalar(slot)?.map(u64::from_le_bytes))
    }

    /// The struct `Timestamp`, unaligned in version 2 blocks.
    pub(crate) fn timestamp(&self, slot: usize) -> Result<Option<[u8; 16]>, FlatbufferError> {
        self.scalar(slot)
    }

    pub(crate) fn string(&self, slot: usize) -> Result<Option<String>, FlatbufferError> {
        let target = self.target(slot, "a string")?;
        target.map(|at| self.buffer.text(at)).transpose()
    }

    pub(crate) fn bytes(&self, slot: usize) -> Result<Option<&'b [u8]>, FlatbufferError> {
        let target = self.target(slot, "a vector")?;
        target.map(|at| self.buffer.vector(at, 1)).transpose()
    }

    pub(crate) fn strings(&self, slot: usize) -> Result<Option<Vec<String>>, FlatbufferError> {
        self.parts(slot, |at| self.buffer.text(at))
    }

    pub(crate) fn table(&self, slot: usize) -> Result<Option<Table<'b>>, FlatbufferError> {
        let target = self.target(slot, "a table")?;
        target.map(|at| Table::at(self.buffer, at, self.depth + 1)).transpose()
    }

    pub(crate) fn tables(&self, slot: usize) -> Result<Option<Vec<Table<'b>>>, FlatbufferError> {
        self.parts(slot, |at| Table::at(self.buffer, at, self.depth + 1))
    }

    /// A union: the tag in `slot`, its table in the next one. Tag 0 is "none".
    pub(crate) fn union(&self, slot: usize) -> Result<Option<(u8, Table<'b>)>, FlatbufferError> {
        let Some([tag]) = self.scalar(slot)? else {
            return Ok(None);
        };
        let table = self.table(slot + 1)?;
        Ok(table.filter(|_| tag != 0).map(|table| (tag, table)))
    }

    fn parts<T>(
        &self,
        slot: usize,
        read: impl Fn(usize) -> Result<T, FlatbufferError>,
    ) -> Result<Option<Vec<T>>, FlatbufferError> {
        let Some(at) = self.target(slot, "a vector")? else {
            return Ok(None);
        };
        let count = self.buffer.vector(at, 4)?.len() / 4;
        let items = (0..count).map(|index| read(self.buffer.follow(at + 4 + 4 * index, "an item")?));
        items.collect::<Result<Vec<T>, _>>().map(Some)
    }
}

/// The value of a field that the schema requires.
pub(crate) fn required<T>(value: Option<T>, field: &'static str) -> Result<T, FlatbufferError> {
    value.ok_or(FlatbufferError::Missing { field })
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, Slot};
    use super::*;

    #[test]
    fn what_the_builder_wrote_is_read_back() {
        let mut builder = Builder::default();
        let slots = [
            builder.string("né"),
            builder.bytes(&[1, 2, 3]),
            builder.strings(&["a".to_owned(), String::new()]),
            Slot::U64(7),
            Slot::Absent,
            Slot::optional_bool(Some(false)),
        ];
        let root = builder.table(&slots);
        let bytes = builder.finish(root);

        let buffer = Buffer::new(&bytes);
        let table = buffer.root().unwrap();

        assert_eq!(table.string(0).unwrap().as_deref(), Some("né"));
        assert_eq!(table.bytes(1).unwrap(), Some(&[1, 2, 3][..]));
        assert_eq!(table.strings(2).unwrap().unwrap(), ["a", ""]);
        assert_eq!(table.u64(3).unwrap(), Some(7));
        assert_eq!(table.u64(4).unwrap(), None);
        assert_eq!(table.bool(5).unwrap(), Some(false));
        assert_eq!(table.u64(60).unwrap(), None, "a field of a newer schema");
    }

    #[test]
    fn a_claimed_length_beyond_the_buffer_is_refused() {
        let mut builder = Builder::default();
        let slots = [builder.bytes(&[9; 8])];
        let root = builder.table(&slots);
        let mut bytes = builder.finish(root);
        let at = bytes.len() - 12;
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());

        let buffer = Buffer::new(&bytes);

        assert!(matches!(buffer.root().unwrap().bytes(0), Err(FlatbufferError::OutOfBounds { what: "a vector", .. })));
    }

    #[test]
    fn a_vector_that_repeats_one_long_string_is_refused_as_an_amplification() {
        let mut builder = Builder::default();
        let Slot::Part(text) = builder.string(&"x".repeat(4_000)) else { unreachable!() };
        let slots = [builder.parts(&[text; 1_000])];
        let root = builder.table(&slots);
        let bytes = builder.finish(root);

        let buffer = Buffer::new(&bytes);

        assert_eq!(buffer.root().unwrap().strings(0), Err(FlatbufferError::Amplified));
    }

    #[test]
    fn no_cut_of_a_buffer_panics() {
        let mut builder = Builder::default();
        let slots = [builder.strings(&["a".to_owned(), "b".to_owned()])];
        let root = builder.table(&slots);
        let bytes = builder.finish(root);

        for len in 0..bytes.len() {
            let buffer = Buffer::new(&bytes[..len]);
            let _ = buffer.root().and_then(|table| table.strings(0));
        }
    }
}
