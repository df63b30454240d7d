//! One CSV record: RFC 4180 with the delimiter of the dataset, fields in schema order, no header.

use csv_core::{ReadRecordResult, ReaderBuilder};

use crate::dataset::decode::error::RowError;
use crate::dataset::decode::scalar;
use crate::dataset::decode::scratch::Scratch;
use crate::dataset::spec::FieldSpec;

/// Reads one record from each payload, in buffers that are kept.
#[derive(Debug)]
pub(crate) struct Reader {
    core: csv_core::Reader,
    /// Unquoted fields, one after the other.
    text: Vec<u8>,
    /// Where each field ends; room for one more than declared, to notice it.
    ends: Vec<usize>,
}

impl Reader {
    pub(crate) fn new(delimiter: u8, fields: usize) -> Self {
        let core = ReaderBuilder::new().delimiter(delimiter).build();
        Self { core, text: Vec::new(), ends: vec![0; fields + 1] }
    }

    /// Reads exactly one record with exactly the declared fields.
    pub(crate) fn decode(
        &mut self,
        payload: &str,
        fields: &[FieldSpec],
        scratch: &mut Scratch,
    ) -> Result<(), RowError> {
        let found = self.read_record(payload.as_bytes())?;
        if found != fields.len() {
            return Err(RowError::CsvFields { expected: fields.len(), found });
        }
        let mut start = 0;
        for (index, field) in fields.iter().enumerate() {
            let end = self.ends[index];
            let bytes = self.text.get(start..end).unwrap_or_default();
            let value = std::str::from_utf8(bytes).map_err(|_| RowError::NotUtf8 { at: start })?;
            scratch.cells[index] =
                scalar::from_bare_text(field, value, scratch).map_err(|problem| problem.of(field))?;
            start = end;
        }
        Ok(())
    }

    /// Splits the payload and returns the number of fields. The parser takes an open quote for a closed one, and so would
    /// silently swallow the fields after it: a whole record has an even number of quotes.
    fn read_record(&mut self, payload: &[u8]) -> Result<usize, RowError> {
        if payload.iter().filter(|byte| **byte == b'"').count() % 2 == 1 {
            return Err(RowError::CsvQuote);
        }
        self.core.reset();
        self.text.clear();
        self.text.shrink_to(crate::dataset::decode::scratch::KEPT_BYTES_MAX);
        self.text.resize(payload.len() + 1, 0);
        let too_many = Err(RowError::CsvFields { expected: self.ends.len() - 1, found: self.ends.len() });
        let (mut read, mut written, mut fields) = (0, 0, 0);
        loop {
            let (text, ends) = (&mut self.text[written..], &mut self.ends[fields..]);
            let (result, bytes_in, bytes_out, ends_out) = self.core.read_record(&payload[read..], text, ends);
            read += bytes_in;
            written += bytes_out;
            fields += ends_out;
            match result {
                // An empty input after this tells the parser that there is no more.
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::Record => break,
                ReadRecordResult::End => return Err(RowError::CsvRecords { found: "none" }),
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => return too_many,
            }
        }
        match payload[read..].iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
            true => Ok(fields),
            false => Err(RowError::CsvRecords { found: "more" }),
        }
    }
}
