//! Conditional selection of self-data distillation (Thangarasa et al., arXiv 2410.09982): an answer that
//! the model wrote with the reference answer in view is kept where it checks out against the reference.

use std::collections::HashSet;

/// The prompt in which the model sees the reference and is to answer in its own words. A small model that
/// is told to take it "as a guide" often answers that it is ready to help; told that it is the correct
/// answer, it uses it, and it states a number in the reference's form only where it is asked to.
pub(crate) fn with_reference(instruction: &str, reference: &str) -> String {
    let how = if reference.contains("####") {
        "Answer in your own words, step by step, and end with the same result in the form #### number."
    } else {
        "Answer in your own words, with the same result."
    };
    format!("{instruction}\n\nThe correct answer is:\n{reference}\n\n{how}")
}

/// Words of a reference that an answer has to contain, at most; longer references are open text.
const SHORT: usize = 5;

/// What a reference says that an answer can be checked for.
#[derive(Debug, PartialEq)]
enum Wanted {
    Number(f64),
    Choice(char),
    Yes(bool),
    /// Words, as [`words`] gives them.
    Words(Vec<String>),
}

/// Whether an answer may take the reference's place. What is compared follows from the reference: the number
/// after `####` (GSM8K), what it says that "the answer is", a choice letter, yes or no, at most five words, or,
/// for open text, its length; an answer that was cut off or repeats itself never may.
pub(crate) fn checks_out(answer: &str, reference: &str, finished: bool) -> bool {
    if !finished || answer.trim().is_empty() || repeats(answer) {
        return false;
    }
    let said = stated(answer);
    match wanted(reference) {
        Some(Wanted::Number(wanted)) => {
            let result = answer.rsplit_once("####").map(|(_, result)| result).or(said);
            let number = match result.and_then(|text| numbers(text).next()) {
                None => numbers(answer).last(),
                number => number,
            };
            number == Some(wanted)
        }
        Some(Wanted::Choice(wanted)) => {
            said.and_then(first_letter).or_else(|| first_letter(answer)) == Some(wanted)
        }
        Some(Wanted::Yes(wanted)) => {
            said.and_then(yes_or_no).or_else(|| yes_or_no(answer)) == Some(wanted)
        }
        Some(Wanted::Words(wanted)) => {
            let all = words(answer);
            all.windows(wanted.len()).any(|run| run == wanted)
        }
        None => {
            let count = |text: &str| text.split_whitespace().count();
            let (long, short) = (count(answer), count(reference));
            long <= 4 * short.max(16) && 4 * long >= short
        }
    }
}

/// Whether a reference has a result that an answer can be checked against.
pub(crate) fn has_result(reference: &str) -> bool {
    wanted(reference).is_some()
}

/// Whether most of an answer's runs of four words stand in the reference too.
pub(crate) fn nearly_copies(answer: &str, reference: &str) -> bool {
    let (answer, reference) = (words(answer), words(reference));
    let known: HashSet<&[String]> = reference.windows(4).collect();
    let runs = answer.windows(4);
    match runs.len() {
        0 => answer == reference,
        all => 5 * runs.filter(|run| known.contains(run)).count() >= 4 * all,
    }
}

fn wanted(reference: &str) -> Option<Wanted> {
    // A Markdown heading has no number alone behind its marks.
    let result = reference.rsplit_once("####").map(|(_, result)| result.trim());
    if let Some(number) = result.and_then(only_number) {
        return Some(Wanted::Number(number));
    }
    let text = stated(reference).unwrap_or(reference).trim();
    let all = words(text);
    if let Some(letter) = lone_letter(text) {
        return Some(Wanted::Choice(letter));
    }
    if let Some(yes) = yes_or_no(text).filter(|_| all.len() == 1) {
        return Some(Wanted::Yes(yes));
    }
    if let Some(number) = only_number(text) {
        return Some(Wanted::Number(number));
    }
    (1..=SHORT).contains(&all.len()).then_some(Wanted::Words(all))
}

/// What a text says last that the answer is: the rest of that line or sentence.
fn stated(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let ends = ["answer is", "answer:"].map(|mark| lower.rfind(mark).map(|at| at + mark.len()));
    let rest = &text[ends.into_iter().flatten().max()?..];
    let rest = rest.trim_start_matches([':', '*', ' ', '\n']);
    let end = [rest.find('\n'), rest.find(". ")].into_iter().flatten().min();
    Some(&rest[..end.unwrap_or(rest.len())])
}

/// The one number of a text of one word, as in `$1,200.`.
fn only_number(text: &str) -> Option<f64> {
    let mut found = numbers(text);
    let number = found.next();
    let alone = found.next().is_none() && !text.contains(char::is_alphabetic);
    number.filter(|_| alone && text.split_whitespace().count() == 1)
}

/// The words of a text in lower case, without punctuation and articles (as answers of SQuAD are compared).
fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !matches!(*word, "" | "a" | "an" | "the"))
        .map(str::to_owned)
        .collect()
}

fn yes_or_no(text: &str) -> Option<bool> {
    match words(text).first()?.as_str() {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

/// The numbers of a text, in order; commas between digits do not end one.
fn numbers(text: &str) -> impl Iterator<Item = f64> {
    text.split(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ',' | '-'))).filter_map(|part| {
        let sign = part.rfind('-').unwrap_or(0);
        let part = part[sign..].trim_matches(['.', ',']).replace(',', "");
        part.parse().ok().filter(|number: &f64| number.is_finite())
    })
}

/// The letter of `B`, `(B)`, `B.` and `B) the text of the choice`: of a text that is a choice's letter, or begins with one
/// that a parenthesis closes.
fn lone_letter(text: &str) -> Option<char> {
    let (letter, rest) = letter_and_rest(text)?;
    (rest.starts_with(')') || !rest.contains(char::is_alphanumeric)).then_some(letter)
}

/// The choice that a text begins with: `B`, `(B)`, `B.`, `B: it` or `B) it`, but not `B.B. King` or `A dog`.
fn first_letter(text: &str) -> Option<char> {
    letter_and_rest(text).map(|(letter, _)| letter)
}

/// A [`first_letter`], and what follows it.
fn letter_and_rest(text: &str) -> Option<(char, &str)> {
    let mut chars = text.trim_start().trim_start_matches(['(', '*']).chars();
    let letter = chars.next().filter(|c| ('A'..='J').contains(c))?;
    let rest = chars.as_str();
    let begins = match chars.next() {
        None | Some(')' | ':' | '*' | ',' | '"') => true,
        Some('.') => !chars.as_str().starts_with(char::is_alphanumeric),
        Some(c) => c.is_whitespace() && chars.as_str().trim().is_empty(),
    };
    begins.then_some((letter, rest))
}

/// Whether fewer than half of the runs of four words are different ones.
fn repeats(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    let runs = words.windows(4).count();
    let different = words.windows(4).collect::<HashSet<_>>().len();
    runs >= 8 && 2 * different < runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers() {
        let reference = "She has 3 * 400 = 1200.\n#### 1,200";
        for (answer, fine) in [
            ("3 times 400 makes 1200", true),
            ("That is $1,200.00.", true),
            ("#### 1200\nI checked it in 2 ways.", true),
            ("First 1200, then 12.", false),
            ("no idea", false),
            ("-1200", false),
        ] {
            assert_eq!(checks_out(answer, reference, true), fine, "{answer}");
        }
        assert!(!checks_out("1200", reference, false), "cut off");
        assert!(checks_out("It is -5.", "#### -5", true));
        assert!(!checks_out("It is 5.", "#### none", true));
    }

    #[test]
    fn letters_are_found_where_they_are_stated() {
        for (answer, fine) in [
            ("B", true),
            ("(B) because", true),
            ("B. Photosynthesis", true),
            ("Let me think. A is wrong, so the answer is B.", true),
            ("Answer: **B**", true),
            ("The answer is A, not B", false),
            ("Because of plants", false),
            ("A", false),
        ] {
            assert_eq!(checks_out(answer, "B", true), fine, "{answer}");
        }
    }

    #[test]
    fn results_are_found_where_references_state_them() {
        let number = |n| Some(Wanted::Number(n));
        let phrase = |text| Some(Wanted::Words(words(text)));
        for (reference, found) in [
            ("So 3 * 4 = 12.\n#### 12", number(12.0)),
            ("#### Heading\nThis is a text of more than five words.", None),
            ("Plants make sugar. The answer is (E).", Some(Wanted::Choice('E'))),
            ("Cars are fast. So the answer is yes.", Some(Wanted::Yes(true))),
            ("It follows from the law. The answer is 1,200.", number(1200.0)),
            ("The moon is no planet. Answer: the big bear", phrase("big bear")),
            ("J. P. Morgan founded a bank in New York City.", None),
            ("A.F.C. Blackpool", phrase("A.F.C. Blackpool")),
            ("E. Coli", phrase("e coli")),
            ("A dog", phrase("dog")),
            ("B", Some(Wanted::Choice('B'))),
            ("(C) because it is wet and so it cannot burn", Some(Wanted::Choice('C'))),
            ("No", Some(Wanted::Yes(false))),
            ("No one knows where it was", None),
            ("Paris", phrase("paris")),
            ("1969", number(1969.0)),
        ] {
            assert_eq!(wanted(reference), found, "{reference}");
        }
    }

    #[test]
    fn short_references_must_occur() {
        for (reference, answer, fine) in [
            ("The Eiffel Tower", "It is the Eiffel tower, in Paris.", true),
            ("Paris", "It is Lyon.", false),
            ("Ann", "It is Annabel.", false),
            ("Cars are fast. The answer is yes.", "Yes, since they are fast.", true),
            ("Cars are fast. The answer is yes.", "They are slow, so the answer is no.", false),
            (
                "Some text. The answer is (E).",
                "I think that the answer is (E), since it rains.",
                true,
            ),
            ("Some text. The answer is (E).", "The answer is (D).", false),
            ("1969", "It was in 1969.", true),
            ("1969", "It was in 1970.", false),
        ] {
            assert_eq!(checks_out(answer, reference, true), fine, "{reference}: {answer}");
        }
    }

    #[test]
    fn copies_are_told_from_own_words() {
        let reference = "Plants make sugar out of light, water and air, which feeds them.";
        assert!(nearly_copies(
            "Plants make sugar out of light, water and air, which feeds them!",
            reference
        ));
        assert!(!nearly_copies(
            "From light, water and air plants make sugar, and live on it.",
            reference
        ));
        assert!(nearly_copies("Paris.", "Paris") && !nearly_copies("It is Paris.", "Paris"));
    }

    #[test]
    fn free_text_is_guarded() {
        let reference = "Plants make sugar out of light, water and air, which is what feeds them.";
        assert!(checks_out("They make sugar from light and water.", reference, true));
        assert!(!checks_out("Yes.", reference, true), "too short");
        let long: String = (0..200).map(|i| format!("word{i} ")).collect();
        assert!(!checks_out(&long, reference, true), "too long");
        assert!(!checks_out(&"and so on and so on ".repeat(6), reference, true), "repeats");
        assert!(!checks_out("", "", true));
    }
}
