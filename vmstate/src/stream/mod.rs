//! The stream's grammar: header, configuration, sections, commands, end, self-description.
