//! `ListObjectsV2` over all the objects of a bucket: prefix, delimiter, pages.

use s3s::dto::{CommonPrefix, ListObjectsV2Input, ListObjectsV2Output, Object};

/// The longest page, also when a client asks for more.
const KEYS_MAX: i32 = 1_000;

/// One page of `objects`, which are sorted by key. A page continues after the last name of the one before it.
pub(crate) fn page(objects: Vec<Object>, input: ListObjectsV2Input) -> ListObjectsV2Output {
    let keys_max = input.max_keys.unwrap_or(KEYS_MAX).clamp(0, KEYS_MAX);
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let after = input.continuation_token.as_deref().or(input.start_after.as_deref()).unwrap_or_default();
    let mut key_count = 0;
    let mut last = after.to_owned();
    let mut truncated = false;
    let (mut contents, mut common_prefixes) = (Vec::new(), Vec::new());
    for object in objects {
        let key = object.key.as_deref().unwrap_or_default();
        let group = group(key, prefix, input.delimiter.as_deref());
        let name = group.unwrap_or(key);
        if !key.starts_with(prefix) || name <= last.as_str() {
            continue;
        }
        if key_count == keys_max {
            truncated = true;
            break;
        }
        key_count += 1;
        name.clone_into(&mut last);
        match group {
            Some(group) => common_prefixes.push(CommonPrefix { prefix: Some(group.to_owned()) }),
            None => contents.push(object),
        }
    }
    ListObjectsV2Output {
        key_count: Some(key_count),
        max_keys: Some(keys_max),
        is_truncated: Some(truncated),
        next_continuation_token: truncated.then_some(last),
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        continuation_token: input.continuation_token,
        start_after: input.start_after,
        delimiter: input.delimiter,
        encoding_type: input.encoding_type,
        name: Some(input.bucket),
        prefix: input.prefix,
        ..Default::default()
    }
}

/// The part of `key` up to the first delimiter after the prefix, which stands for all keys that share it.
fn group<'a>(key: &'a str, prefix: &str, delimiter: Option<&str>) -> Option<&'a str> {
    let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty())?;
    let at = key.strip_prefix(prefix)?.find(delimiter)?;
    key.get(..prefix.len() + at + delimiter.len())
}
