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

/// Whether an answer may take the reference's place. What is compared follows from the reference: the
/// number after `####` (GSM8K), a choice letter, or, for free text, its length; an answer that was cut
/// off or repeats itself never may.
pub(crate) fn checks_out(answer: &str, reference: &str, finished: bool) -> bool {
    if !finished || answer.trim().is_empty() || repeats(answer) {
        return false;
    }
    if let Some((_, result)) = reference.rsplit_once("####") {
        let wanted = numbers(result).next();
        let stated = match answer.rsplit_once("####") {
            Some((_, result)) => numbers(result).next(),
            None => numbers(answer).last(),
        };
        return wanted.is_some() && stated == wanted;
    }
    if let Some(wanted) = lone_letter(reference) {
        return choice(answer) == Some(wanted);
    }
    let words = |text: &str| text.split_whitespace().count();
    let (long, short) = (words(answer), words(reference));
    long <= 4 * short.max(16) && 4 * long >= short
}

/// Whether a reference has a result that an answer can be checked against: a number or a choice.
pub(crate) fn has_result(reference: &str) -> bool {
    reference.contains("####") || lone_letter(reference).is_some()
}

/// The numbers of a text, in order; commas between digits do not end one.
fn numbers(text: &str) -> impl Iterator<Item = f64> {
    text.split(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ',' | '-'))).filter_map(|part| {
        let sign = part.rfind('-').unwrap_or(0);
        let part = part[sign..].trim_matches(['.', ',']).replace(',', "");
        part.parse().ok().filter(|number: &f64| number.is_finite())
    })
}

/// The letter of `B`, `(B)`, `B.` or `B) the text of the choice`.
fn lone_letter(text: &str) -> Option<char> {
    let text = text.trim_start().trim_start_matches(['(', '*']);
    let mut chars = text.chars();
    let letter = chars.next().filter(|c| ('A'..='J').contains(c))?;
    let closed = match chars.next() {
        None | Some(')' | '.' | ':' | '*') => true,
        Some(c) => c.is_whitespace() && chars.as_str().trim().is_empty(),
    };
    closed.then_some(letter)
}

/// The choice an answer states: after its last `answer is` or `answer:`, else at its start.
fn choice(answer: &str) -> Option<char> {
    let lower = answer.to_ascii_lowercase();
    let ends = ["answer is", "answer:"].map(|mark| lower.rfind(mark).map(|at| at + mark.len()));
    let stated = ends.into_iter().flatten().max().and_then(|end| {
        let word = answer[end..].trim_start_matches([':', '*', ' ', '\n']);
        let word = word.split_whitespace().next()?;
        lone_letter(word.trim_end_matches([',', '"']))
    });
    stated.or_else(|| lone_letter(answer))
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
