//! Writes a buffer from its last byte to its first.
//!
//! The bytes are kept reversed, so that "prepend" is a `Vec` push and a part's [`Offset`] (its distance from the end of
//! the finished buffer) is simply the length at the time it was written.

/// A part already written: the distance of its first byte from the end of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offset(u32);

/// What a table stores for one field of its schema.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    /// Not there, or at its default.
    Absent,
    /// `bool`, as 0 or 1.
    Bool(bool),
    /// `int16`.
    I16(i16),
    /// `int32`.
    I32(i32),
    /// `uint32`.
    U32(u32),
    /// `int64`.
    I64(i64),
    /// `uint64`.
    U64(u64),
    /// The struct `Timestamp`, laid out.
    Timestamp([u8; 16]),
    /// A string, vector or table.
    Part(Offset),
    /// A union: its tag and its table. Takes two vtable slots.
    Union(u8, Offset),
    /// A union that is not there. Takes two vtable slots.
    AbsentUnion,
}

impl Slot {
    /// A plain `uint64`: the default, zero, is not stored.
    pub(crate) fn u64(value: u64) -> Self {
        if value == 0 { Self::Absent } else { Self::U64(value) }
    }

    /// A plain `int32`: the default, zero, is not stored.
    pub(crate) fn i32(value: i32) -> Self {
        if value == 0 { Self::Absent } else { Self::I32(value) }
    }

    /// A plain `uint32`: the default, zero, is not stored.
    pub(crate) fn u32(value: u32) -> Self {
        if value == 0 { Self::Absent } else { Self::U32(value) }
    }

    /// A `uint64 = null`: stored whenever it is set, zero too.
    pub(crate) fn optional_u64(value: Option<u64>) -> Self {
        value.map_or(Self::Absent, Self::U64)
    }

    /// A `bool = null`.
    pub(crate) fn optional_bool(value: Option<bool>) -> Self {
        value.map_or(Self::Absent, Self::Bool)
    }

    fn width(self) -> u16 {
        match self {
            Self::Union(..) | Self::AbsentUnion => 2,
            _ => 1,
        }
    }
}

/// Builds one buffer. See the module's documentation for the order in which parts must be written.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    /// The buffer so far, last byte first.
    reversed: Vec<u8>,
    alignment_max: usize,
    vtables: Vec<(Vec<u8>, u32)>,
}

impl Builder {
    /// A string.
    pub(crate) fn string(&mut self, text: &str) -> Slot {
        Slot::Part(self.string_part(text))
    }

    /// A string that may be absent.
    pub(crate) fn optional_string(&mut self, text: Option<&str>) -> Slot {
        text.map_or(Slot::Absent, |text| self.string(text))
    }

    /// A vector of strings: all of them, then the vector.
    pub(crate) fn strings(&mut self, texts: &[String]) -> Slot {
        let parts: Vec<Offset> = texts.iter().map(|text| self.string_part(text)).collect();
        self.parts(&parts)
    }

    /// A vector of strings that may be absent.
    pub(crate) fn optional_strings(&mut self, texts: Option<&[String]>) -> Slot {
        texts.map_or(Slot::Absent, |texts| self.strings(texts))
    }

    /// A vector of `ubyte`.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Slot {
        self.align(bytes.len(), 4);
        self.prepend(bytes);
        self.length_prefix(bytes.len())
    }

    /// A vector of `ubyte` that may be absent.
    pub(crate) fn optional_bytes(&mut self, bytes: Option<&[u8]>) -> Slot {
        bytes.map_or(Slot::Absent, |bytes| self.bytes(bytes))
    }

    /// A vector of strings or tables already written.
    pub(crate) fn parts(&mut self, parts: &[Offset]) -> Slot {
        self.align(parts.len() * 4, 4);
        for part in parts.iter().rev() {
            self.reference(*part);
        }
        self.length_prefix(parts.len())
    }

    /// A table; `slots` are all fields of its schema, in order.
    pub(crate) fn table(&mut self, slots: &[Slot]) -> Offset {
        let tail = self.position();
        let mut fields = Vec::new();
        let mut id = 0;
        for slot in slots {
            self.field(*slot, id, &mut fields);
            id += slot.width();
        }
        self.scalar([0; 4]); // the distance to the vtable, known below
        let table = self.position();
        let vtable = self.vtable(&vtable_bytes(&fields, table, tail));
        let distance = i64::from(vtable) - i64::from(table);
        let distance = i32::try_from(distance).expect("a buffer is far smaller than 2 GiB");
        let start = table as usize;
        for (at, byte) in (0..start).rev().zip(distance.to_le_bytes()) {
            self.reversed[at] = byte;
        }
        Offset(table)
    }

    /// The finished buffer, with `root` as its root table.
    pub(crate) fn finish(mut self, root: Offset) -> Vec<u8> {
        self.align(4, self.alignment_max);
        self.reference(root);
        self.reversed.reverse();
        self.reversed
    }

    fn field(&mut self, slot: Slot, id: u16, fields: &mut Vec<(u16, u32)>) {
        match slot {
            Slot::Absent | Slot::AbsentUnion => return,
            Slot::Bool(value) => self.scalar([u8::from(value)]),
            Slot::I16(value) => self.scalar(value.to_le_bytes()),
            Slot::I32(value) => self.scalar(value.to_le_bytes()),
            Slot::U32(value) => self.scalar(value.to_le_bytes()),
            Slot::I64(value) => self.scalar(value.to_le_bytes()),
            Slot::U64(value) => self.scalar(value.to_le_bytes()),
            Slot::Timestamp(bytes) => {
                self.align(bytes.len(), 4);
                self.prepend(&bytes);
            }
            Slot::Part(part) => self.reference(part),
            Slot::Union(tag, part) => {
                self.scalar([tag]);
                fields.push((id, self.position()));
                self.reference(part);
                fields.push((id + 1, self.position()));
                return;
            }
        }
        fields.push((id, self.position()));
    }

    /// Writes the vtable unless an equal one is there; answers where it is.
    fn vtable(&mut self, bytes: &[u8]) -> u32 {
        if let Some((_, at)) = self.vtables.iter().find(|(known, _)| known == bytes) {
            return *at;
        }
        self.prepend(bytes);
        let at = self.position();
        self.vtables.push((bytes.to_vec(), at));
        at
    }

    fn string_part(&mut self, text: &str) -> Offset {
        self.align(text.len() + 1, 4);
        self.prepend(&[0]);
        self.prepend(text.as_bytes());
        self.scalar(length(text.len()).to_le_bytes());
        Offset(self.position())
    }

    fn length_prefix(&mut self, count: usize) -> Slot {
        self.scalar(length(count).to_le_bytes());
        Slot::Part(Offset(self.position()))
    }

    /// The distance from here to an earlier part.
    fn reference(&mut self, part: Offset) {
        self.align(4, 4);
        let distance = self.position() + 4 - part.0;
        self.prepend(&distance.to_le_bytes());
    }

    fn scalar<const N: usize>(&mut self, bytes: [u8; N]) {
        self.align(N, N);
        self.prepend(&bytes);
    }

    /// Pads so that after `len` more bytes the position is a multiple of `alignment` (a power of two).
    fn align(&mut self, len: usize, alignment: usize) {
        self.alignment_max = self.alignment_max.max(alignment);
        let end = (self.reversed.len() + len).next_multiple_of(alignment);
        self.reversed.resize(end - len, 0);
    }

    fn prepend(&mut self, bytes: &[u8]) {
        self.reversed.extend(bytes.iter().rev());
    }

    fn position(&self) -> u32 {
        length(self.reversed.len())
    }
}

/// `[own length, length of the table's inline part, position of each field in it or 0]`, up to the last present field.
fn vtable_bytes(fields: &[(u16, u32)], table: u32, tail: u32) -> Vec<u8> {
    let slots = fields.last().map_or(0, |(id, _)| id + 1);
    let mut values = vec![0u16; 2 + usize::from(slots)];
    values[0] = 4 + 2 * slots;
    values[1] = narrow(table - tail);
    for (id, at) in fields {
        values[2 + usize::from(*id)] = narrow(table - at);
    }
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn narrow(distance: u32) -> u16 {
    u16::try_from(distance).expect("an ODF table has at most a dozen fields of at most 16 bytes")
}

fn length(count: usize) -> u32 {
    u32::try_from(count).expect("a buffer is far smaller than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_a_vtable_of_four_bytes_and_a_distance() {
        let mut builder = Builder::default();
        let root = builder.table(&[Slot::Absent, Slot::AbsentUnion]);

        assert_eq!(builder.finish(root), [8, 0, 0, 0, 4, 0, 4, 0, 4, 0, 0, 0], "root offset, vtable, table");
    }

    #[test]
    fn tables_with_equal_fields_share_one_vtable() {
        let mut builder = Builder::default();
        builder.table(&[Slot::u32(1), Slot::u32(1)]);
        let before = builder.reversed.len();
        builder.table(&[Slot::u32(2), Slot::u32(2)]);

        assert_eq!(builder.vtables.len(), 1);
        assert_eq!(builder.reversed.len() - before, 12, "two values and a distance");
    }

    #[test]
    fn a_default_is_left_out_and_an_optional_zero_is_kept() {
        assert!(matches!(Slot::u64(0), Slot::Absent));
        assert!(matches!(Slot::optional_u64(Some(0)), Slot::U64(0)));
    }
}
